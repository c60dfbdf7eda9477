"""Files that a person keeps: written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from nas.errors import StorageError

__all__ = ["write_text"]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, with the folders above it.

    Raises:
        StorageError: the file cannot be written; what stood there before still does.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Choose another place, or free space.",
        ) from error
