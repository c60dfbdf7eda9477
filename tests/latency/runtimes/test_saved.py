from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas import files
from nas.errors import EngineError
from nas.latency.runtimes.saved import Identity, SavedEngine

IDENTITY = Identity(
    runtime="openvino",
    version="2026.4.1",
    device="A processor (avx2)",
    precision="int8",
    threads=2,
    input_shape=(4, 3, 8, 16),
)
HERE = {"runtime": "openvino", "version": "2026.4.1", "device": "A processor (avx2)"}


@given(content=st.binary(), facts=st.dictionaries(st.text(), st.text()), device=st.text())
def test_saved__comes_back(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, facts: dict[str, str], device: str
) -> None:
    path = tmp_path_factory.mktemp("saved") / "deep" / "engine.bin"
    saved = SavedEngine(replace(IDENTITY, device=device), content, facts)
    saved.write(path)
    assert path.read_bytes() == content  # as the library wrote it: other programs can load it
    assert SavedEngine.read(path) == saved
    assert sorted(one.name for one in path.parent.iterdir()) == ["engine.bin", "engine.bin.json"]


@pytest.mark.parametrize("what", sorted(HERE))
def test_require__elsewhere_is_an_error_with_both_values(what: str) -> None:
    saved = SavedEngine(IDENTITY, b"", {})
    saved.require(**HERE)
    with pytest.raises(EngineError) as caught:
        saved.require(**HERE | {what: "another"})
    assert f"good for the {what}" in caught.value.message
    assert f"{HERE[what]!r}, here is 'another'" in caught.value.message
    assert "Build the engine again" in caught.value.remedy


@pytest.mark.parametrize(
    "change",
    [
        {"format": "nas engine 0"},
        {"threads": "many"},
        {"input_shape": 3},
        {"runtime": None},
        {"facts": {"layers": 3}},
        {"facts": []},
        {"sha256": "0"},
        {"bytes": None},
    ],
    ids=str,
)
def test_read__broken_description_is_an_error(tmp_path: Path, change: dict[str, Any]) -> None:
    SavedEngine(IDENTITY, b"engine", {}).write(tmp_path / "a")
    about = tmp_path / "a.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    with pytest.raises(EngineError, match=r"describe"):
        SavedEngine.read(tmp_path / "a")


@pytest.mark.parametrize("text", [b"", b"[]", b"3", b'"format"', b"\xff", b"{", b"null", b"{}"])
def test_read__what_is_no_description_is_an_error(tmp_path: Path, text: bytes) -> None:
    SavedEngine(IDENTITY, b"engine", {}).write(tmp_path / "a")
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(EngineError, match="does not describe an engine"):
        SavedEngine.read(tmp_path / "a")


def test_read__halves_of_two_engines_are_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        SavedEngine(IDENTITY, name.encode(), {}).write(tmp_path / name)
    (tmp_path / "a").replace(tmp_path / "b")
    with pytest.raises(EngineError, match="is not the engine that"):
        SavedEngine.read(tmp_path / "b")


def test_write__a_place_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be written"):
        SavedEngine(IDENTITY, b"", {}).write(tmp_path / "file" / "a")


def test_replace__keeps_what_was_there_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "kept").write_text("")
    with pytest.raises(OSError, match=r"a"):  # a folder with a file in it
        files.replace(path, b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
