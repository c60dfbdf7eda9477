from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import ArchitectureError, SpaceError, UnknownNameError
from nas.space.space import load_space
from nas.space.subject import find_anchor, is_file, read_architecture, subject_name
from nas.space.ultralytics import to_ultralytics

SPACE = load_space("digits")
MIDDLE = SPACE.candidate(SPACE.anchors["middle"], 7).architecture


def test_find_anchor__of_a_shipped_space_and_of_a_named_one() -> None:
    for subject, space in (("digits:middle", None), ("middle", "digits")):
        found, point = find_anchor(subject, space)
        assert (found.digest, point) == (SPACE.digest, SPACE.anchors["middle"])


def test_find_anchor__of_a_space_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndescription: one choice\nchoices: {size: [64, 96]}\narchitecture:\n"
        "  input: $size\n  stem: {channels: 8}\n"
        "  backbone: {P2: &f {block: c2f, channels: 8, hidden: 8}, P3: *f, P4: *f, P5: *f}\n"
        "  neck: {top_down: {P4: *f, P3: *f}, bottom_up: {P4: *f, P5: *f}}\n"
        "  head: {channels: 8}\n"
    )
    assert read_architecture(f"{path}:max", 3).input == (96, 96)


@pytest.mark.parametrize(
    ("subject", "error", "words"),
    [
        ("middle", SpaceError, "digits:middle"),
        ("digits:mid", UnknownNameError, "'mid'"),
        ("digit:middle", UnknownNameError, "'digits'"),
        ("./no.yaml:middle", SpaceError, "no.yaml"),
    ],
)
def test_find_anchor__says_what_there_is(subject: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        find_anchor(subject)
    assert words in str(raised.value)


def test_read_architecture__the_same_network_by_three_names(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a.yaml", tmp_path / "b.yml"
    ours.write_text(MIDDLE.to_yaml())
    theirs.write_text(to_ultralytics(MIDDLE))
    for subject in ("digits:middle", str(ours), str(theirs)):
        assert read_architecture(subject, 7).digest == MIDDLE.digest


def test_read_architecture__a_file_says_its_own_classes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MIDDLE.to_yaml())
    assert read_architecture(str(tmp_path / "a.yaml"), 80).classes == 7


def test_read_architecture__a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="cannot be read"):
        read_architecture(str(tmp_path / "no.yaml"), 80)


@pytest.mark.parametrize(
    ("subject", "name", "file"),
    [
        ("digits:middle", "digits-middle", False),
        ("some/where/mine.yaml", "mine", True),
        ("some/mine.yaml:max", "mine.yaml-max", False),
    ],
)
def test_subject_name__can_stand_in_a_file_name(subject: str, name: str, file: bool) -> None:
    assert (subject_name(subject), is_file(subject)) == (name, file)
