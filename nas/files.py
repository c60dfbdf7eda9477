"""Files that are written whole or not at all: what a person keeps, and caches."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from nas.errors import StorageError

__all__ = ["replace", "write_atomically", "write_text"]


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


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file that then takes the name `path`: never half a file.

    Raises:
        StorageError: the disk is full, or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                write(file)
            except BaseException:
                Path(file.name).unlink()
                raise
        Path(file.name).replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", "Free space, or choose another folder."
        ) from error
