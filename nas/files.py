"""Files that a person keeps: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from nas.errors import StorageError

__all__ = ["replace", "write_text"]


def replace(path: Path, content: bytes) -> None:
    """Write a file in a folder that exists; what stood there before stays until all is on the disk.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    # A name of its own, so that two processes which write one file do not write into each other's.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, with the folders above it.

    Raises:
        StorageError: the file cannot be written; what stood there before still does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text.encode())
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Choose another place, or free space.",
        ) from error
