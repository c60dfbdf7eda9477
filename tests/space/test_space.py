from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import SpaceError, UnknownNameError
from nas.space.space import SearchSpace, load_space, shipped_spaces

CLASSES = 10
SEEDS = st.integers(0, 2**32 - 1)
SMALL = """\
name: small
description: Two stages of choice.
choices:
  input: [64, 96]
  hidden: [8, 16]
  attention: [null, {kind: sparse, tokens: 16}, {kind: dense}]
architecture:
  input: $input
  stem: {channels: 8}
  backbone:
    P2: {block: c2f, channels: 16, hidden: $hidden}
    P3: {block: c2f, channels: 16, hidden: $hidden}
    P4: {block: c2f, channels: 16, hidden: 8}
    P5: {block: c2f, channels: 16, hidden: 8}
  attention: {P4: $attention}
  neck:
    top_down:
      P4: {block: c2f, channels: 16, hidden: 8}
      P3: {block: c2f, channels: 16, hidden: 8}
    bottom_up:
      P4: {block: c2f, channels: 16, hidden: 8}
      P5: {block: c2f, channels: 16, hidden: 8}
  head: {channels: 16}
anchors:
  wide: {hidden: 16}
"""


@pytest.fixture(scope="module")
def digits() -> SearchSpace:
    return load_space("digits")


def _load(tmp_path: Path, text: str) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(str(path))


@pytest.mark.parametrize("name", shipped_spaces())
def test_shipped__every_space_loads(name: str) -> None:
    space = load_space(name)
    assert space.name == name
    assert space.size > 1


@given(SEEDS)
def test_sample__lies_in_the_space(digits: SearchSpace, seed: int) -> None:
    point = digits.sample(np.random.default_rng(seed))
    candidate = digits.candidate(point, CLASSES)
    found = digits.point_of(candidate)
    assert found is not None
    assert digits.candidate(found, CLASSES).digest == candidate.digest


@given(SEEDS)
def test_neighbours__differ_in_one_choice(digits: SearchSpace, seed: int) -> None:
    point = digits.sample(np.random.default_rng(seed))
    neighbours = list(digits.neighbours(point))
    assert len(neighbours) == sum(len(labels) - 1 for labels in digits.choices.values())
    for other in neighbours:
        assert sum(other[name] != point[name] for name in point) == 1


def test_contains__not_what_lies_outside(digits: SearchSpace) -> None:
    inside = digits.candidate(digits.anchors["min"], CLASSES)
    data = inside.architecture.model_copy(update={"activation": "relu"})
    assert digits.contains(inside)
    assert not digits.contains(inside.model_copy(update={"architecture": data}))


def test_anchors__hold_first_last_and_named(tmp_path: Path) -> None:
    space = _load(tmp_path, SMALL)
    assert space.anchors["min"] == {"input": 64, "hidden": 8, "attention": "none"}
    assert space.anchors["max"] == {"input": 96, "hidden": 16, "attention": "dense"}
    assert space.anchors["wide"] == {"input": 64, "hidden": 16, "attention": "none"}
    assert space.size == 12


def test_candidate__one_choice_fills_every_reference(tmp_path: Path) -> None:
    space = _load(tmp_path, SMALL)
    backbone = space.candidate(space.anchors["wide"], CLASSES).architecture.backbone
    assert (backbone.P2.hidden, backbone.P3.hidden, backbone.P4.hidden) == (16, 16, 8)


def test_candidate__more_tokens_than_the_map_has_are_dense(tmp_path: Path) -> None:
    space = _load(tmp_path, SMALL)
    point = {"input": 64, "hidden": 8, "attention": "sparse-16"}
    dense = space.candidate({**point, "attention": "dense"}, CLASSES)
    assert space.candidate(point, CLASSES).digest == dense.digest
    wide = space.candidate({**point, "input": 96}, CLASSES).architecture
    assert wide.attention.P4 is not None
    assert wide.attention.P4.tokens == 16


def test_covering__holds_every_option(tmp_path: Path) -> None:
    space = _load(tmp_path, SMALL)
    covering = space.covering(CLASSES)
    assert {a.input[0] for a in covering} == {64, 96}
    assert {a.attention.P4 is None for a in covering} == {True, False}
    assert len(covering) == 1 + 1 + 1 + 2


def test_digest__follows_meaning_not_words(tmp_path: Path) -> None:
    space = _load(tmp_path, SMALL)
    reworded = _load(tmp_path, SMALL.replace("Two stages", "Some stages"))
    widened = _load(tmp_path, SMALL.replace("[64, 96]", "[64, 96, 128]"))
    assert space.digest == reworded.digest != widened.digest


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("choices:", "choises:", ["line 3", "choises", "'choices'"]),
        ("hidden: [8, 16]", "hidden: []", ["line 5", "hidden"]),
        ("hidden: [8, 16]", "hidden: [8, 8]", ["line 5", "equal"]),
        ("$input", "$inptu", ["inptu", "'input'"]),
        ("input: $input", "input: 64", ["line 4", "nothing refers"]),
        ("hidden: [8, 16]", "hidden: [8, big]", ["big", "hidden"]),
        ("P4: $attention", "P6: $attention", ["P6"]),
        ("{hidden: 16}", "{hidden: 17}", ["17"]),
        ("{hidden: 16}", "{hiden: 16}", ["hiden"]),
        ("name: small", "name: Small Space", ["name"]),
        ("stem: {channels: 8}", "stem: {channels: 8", ["line"]),
        ("  stem:", "  classes: 10\n  stem:", ["classes"]),
        ("architecture:", "precision: fp8\narchitecture:", ["fp8"]),
    ],
)
def test_load__names_rule_value_and_place(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in SMALL
    with pytest.raises(SpaceError) as caught:
        _load(tmp_path, SMALL.replace(old, new, 1))
    for word in words:
        assert word in str(caught.value)


def test_load__unknown_name_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="digits"):
        load_space("digitz")


@pytest.mark.parametrize(
    "point", [{"input": 64}, {"input": 65, "hidden": 8, "attention": "none"}, {"no": 1}]
)
def test_candidate__refuses_bad_points(tmp_path: Path, point: dict[str, int | str]) -> None:
    with pytest.raises(SpaceError):
        _load(tmp_path, SMALL).candidate(point, CLASSES)
