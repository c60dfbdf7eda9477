from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import StorageError
from nas.files import write_atomically, write_text


def test_write_text__makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one")
    write_text(path, "\N{GREEK SMALL LETTER MU}")
    assert path.read_bytes() == "\N{GREEK SMALL LETTER MU}".encode()
    assert [one.name for one in path.parent.iterdir()] == ["b.txt"]


def test_write_text__a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "file" / "b.txt", "lost")
    assert (tmp_path / "file").read_text() == "kept"


def test_write_atomically__failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", fail)
    assert list(tmp_path.iterdir()) == []


def test_write_atomically__impossible_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "cache", lambda file: file.write(b""))
