from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nas.latency.runtimes.tensorrt_cache import CacheKey, TimingCacheFile, default_folder

KEY = CacheKey(device="NVIDIA L4", capability="8.9", tensorrt="10.16.1.11", cuda="13.0")


def test_cache__comes_back(tmp_path: Path) -> None:
    file = TimingCacheFile(tmp_path / "new" / "folder", KEY)
    assert file.read() == (b"", "")
    assert file.write(b"\x00timings\n\xff") == ""
    assert file.read() == (b"\x00timings\n\xff", "")
    assert file.write(b"more") == ""
    assert TimingCacheFile(tmp_path / "new" / "folder", KEY).read() == (b"more", "")
    assert [one.name for one in file.path.parent.iterdir()] == [file.path.name]


@pytest.mark.parametrize("field", ["device", "capability", "tensorrt", "cuda"])
def test_cache__every_part_of_the_key_makes_another_file(tmp_path: Path, field: str) -> None:
    other = dataclasses.replace(KEY, **{field: getattr(KEY, field) + "1"})
    TimingCacheFile(tmp_path, KEY).write(b"timings")
    assert TimingCacheFile(tmp_path, other).read() == (b"", "")


def test_cache__names_that_look_alike_are_kept_apart() -> None:
    names = {
        dataclasses.replace(KEY, device=name).file_name for name in ("A-100", "A 100", "a/100")
    }
    assert len(names) == 3
    assert all(re.fullmatch(r"a-100-sm8\.9-trt10\.16\.1\.11-[a-z0-9.-]+\.timing", n) for n in names)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content.replace(b"timings", b"tamings"),
        lambda content: content.replace(b"NVIDIA L4", b"NVIDIA T4"),
        lambda _: b"",
        lambda _: b"\xff" * 40,
    ],
    ids=["short", "long", "changed", "other device", "empty", "noise"],
)
def test_cache__damage_is_noted_and_ignored(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = TimingCacheFile(tmp_path, KEY)
    file.write(b"timings")
    file.path.write_bytes(damage(file.path.read_bytes()))
    content, note = file.read()
    assert content == b""
    assert "ignored" in note
    assert file.write(b"again") == ""
    assert file.read() == (b"again", "")


def test_cache__a_folder_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = TimingCacheFile(tmp_path / "file", KEY)
    assert "not written" in file.write(b"timings")
    content, note = file.read()
    assert (content, "ignored" in note) == (b"", True)


def test_cache__lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/nas-detector/tensorrt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "nas-detector" / "tensorrt"
