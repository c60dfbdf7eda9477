from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import SpaceError, UnknownNameError
from nas.model.supernet import Supernet
from nas.space.architecture import Candidate, digest_of
from nas.space.space import Point, SearchSpace, load_space, shipped_spaces

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
NESTED = """\
name: nested
description: Choices within choices, and records of which one field is taken.
choices:
  insertion:
    none: {}
    P5: {P5: &attention {tokens: $k, selection: $selection, gate: $gate}}
    P4+P5: {P4: *attention, P5: *attention}
  k: [4, 9, all]
  selection: [learned, squared_l2]
  gate: [none, learned]
  width: {small: {p3: 16, inner: {p2: 4}}, large: {p3: 24, inner: {p2: 8}}}
  input: [64, 96]
  mode: [{engine: bf16}, {engine: fp32}]
precision: $mode.engine
architecture:
  input: $input
  stem: {channels: 8}
  backbone:
    P2: {block: c2f, channels: 8, hidden: $width.inner.p2}
    P3: {block: c2f, channels: $width.p3, hidden: 4}
    P4: {block: c2f, channels: 8, hidden: 4}
    P5: {block: c2f, channels: 8, hidden: 4}
  attention: $insertion
  neck:
    top_down:
      P4: {block: c2f, channels: 8, hidden: 4}
      P3: {block: c2f, channels: 8, hidden: 4}
    bottom_up:
      P4: {block: c2f, channels: 8, hidden: 4}
      P5: {block: c2f, channels: 8, hidden: 4}
  head: {channels: 8}
"""


@pytest.fixture(scope="module")
def digits() -> SearchSpace:
    return load_space("digits")


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    return _load(tmp_path_factory.mktemp("nested"), NESTED)


@pytest.fixture(scope="module", params=shipped_spaces())
def shipped(request: pytest.FixtureRequest) -> SearchSpace:
    return load_space(request.param)


@pytest.fixture(scope="module")
def nested_supernet(nested: SearchSpace) -> Supernet:
    return Supernet(nested.covering(CLASSES))


@pytest.fixture(scope="module")
def shipped_supernet(shipped: SearchSpace) -> Supernet:
    with torch.device("meta"):  # hundreds of millions of weights otherwise
        return Supernet(shipped.covering(CLASSES))


def _every_candidate(space: SearchSpace) -> dict[str, tuple[Point, Candidate]]:
    points = (
        dict(zip(space.choices, labels, strict=True))
        for labels in itertools.product(*space.choices.values())
    )
    candidates = [(point, space.candidate(point, CLASSES)) for point in points]
    return {candidate.digest: (point, candidate) for point, candidate in candidates}


def _load(tmp_path: Path, text: str) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(str(path))


@pytest.mark.parametrize("name", shipped_spaces())
def test_shipped__every_space_loads(name: str) -> None:
    space = load_space(name)
    assert space.name == name
    assert space.size > 1


@settings(max_examples=25)
@given(SEEDS)
def test_point_of__a_sample_describes_the_same_candidate(shipped: SearchSpace, seed: int) -> None:
    candidate = shipped.candidate(shipped.sample(np.random.default_rng(seed)), CLASSES)
    found = shipped.point_of(candidate)
    assert found is not None
    assert shipped.candidate(found, CLASSES) == candidate


def test_point_of__every_candidate_of_a_nested_space(nested: SearchSpace) -> None:
    candidates = _every_candidate(nested)
    assert len(candidates) < nested.size  # k has no effect without insertion
    for _, candidate in candidates.values():
        found = nested.point_of(candidate)
        assert found is not None
        assert nested.candidate(found, CLASSES) == candidate


def test_candidate__a_choice_within_an_option_not_taken_has_no_effect(nested: SearchSpace) -> None:
    base = {**nested.anchors["max"], "insertion": "none"}
    found = {nested.candidate({**base, "k": k}, CLASSES).digest for k in nested.choices["k"]}
    assert len(found) == 1


def test_candidate__fills_within_options_and_takes_fields(nested: SearchSpace) -> None:
    edits = {"insertion": "P4+P5", "k": 4, "width": "large", "gate": "none"}
    candidate = nested.candidate({**nested.anchors["min"], **edits, "input": 96}, CLASSES)
    architecture = candidate.architecture
    assert (architecture.backbone.P2.hidden, architecture.backbone.P3.channels) == (8, 24)
    for point in (architecture.attention.P4, architecture.attention.P5):
        assert point is not None
        assert (point.tokens, point.selection, point.gate) == (4, "learned", "none")
    assert architecture.attention.P3 is None


def test_precisions__through_fields_of_records(nested: SearchSpace) -> None:
    assert nested.precisions == ("bf16", "fp32")


def test_revealing__reaches_a_choice_that_max_does_not_read(tmp_path: Path) -> None:
    turned = NESTED.replace("    none: {}\n", "").replace(
        "  k: [4, 9, all]", "    none: {}\n  k: [4, 9, all]"
    )
    space = _load(tmp_path, turned)
    assert space.anchors["max"]["insertion"] == "none"
    assert space.revealing("k") == {**space.anchors["max"], "insertion": "P4+P5"}
    assert space.revealing("input") == space.anchors["max"]
    with pytest.raises(SpaceError, match="big"):
        _load(tmp_path, turned.replace("k: [4, 9, all]", "k: [4, big]"))


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


@pytest.mark.parametrize("turned", [False, True])
def test_covering__a_supernet_holds_every_candidate(tmp_path: Path, turned: bool) -> None:
    text = NESTED
    if turned:  # the largest others hide more: no insertion, and among all positions
        text = text.replace("    none: {}\n", "").replace("  k: [", "    none: {}\n  k: [")
    space = _load(tmp_path, text)
    with torch.device("meta"):
        supernet = Supernet(space.covering(CLASSES))
    for _, candidate in _every_candidate(space).values():
        supernet.activate(candidate.architecture)


@pytest.mark.parametrize("seed", range(4))
def test_covering__activated_equals_extracted(
    nested: SearchSpace, nested_supernet: Supernet, seed: int
) -> None:
    point = nested.sample(np.random.default_rng(seed))
    architecture = nested.candidate(point, CLASSES).architecture
    images = torch.rand(1, 3, *architecture.input, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        shared = nested_supernet.eval().activate(architecture)(images)
        alone = nested_supernet.extract(architecture)(images)
    assert torch.equal(shared.logits, alone.logits)


@pytest.mark.parametrize("seed", range(4))
def test_covering__of_shipped_spaces_holds_samples(
    shipped: SearchSpace, shipped_supernet: Supernet, seed: int
) -> None:
    point = shipped.sample(np.random.default_rng(seed))
    shipped_supernet.activate(shipped.candidate(point, CLASSES).architecture)


def test_digest__of_the_default_space_never_changes(digits: SearchSpace) -> None:
    """Stored studies and supernets are found by these."""
    assert digits.digest == "7bb40343bf03c303"
    covering = [architecture.canonical() for architecture in digits.covering(CLASSES)]
    assert digest_of(covering) == "81af185a83a8d7f3"


def test_digest__labels_are_names_only(tmp_path: Path) -> None:
    given = _load(tmp_path, SMALL.replace("hidden: [8, 16]", "hidden: {8: 8, 16: 16}"))
    assert given.digest == _load(tmp_path, SMALL).digest


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
        ("hidden: [8, 16]", "hidden: {}", ["line 5", "hidden"]),
        ("hidden: [8, 16]", "hidden: 8", ["line 5", "hidden", "[8]"]),
        ("hidden: [8, 16]", "hidden: [8, 8]", ["line 5", "equal", "8"]),
        ("hidden: [8, 16]", "hidden: {none: 8, null: 16}", ["line 5", "equal", "'none'"]),
        ("hidden: [8, 16]", "hidden: {a: 8, a: 16}", ["line 5", "'a'", "twice"]),
        ("hidden: [8, 16]", "hidden: &a [8, *a]", ["line 5", "alias"]),
        ("hidden: [8, 16]", "hidden: [8, $hidden]", ["line 5", "$hidden -> $hidden"]),
        ("hidden: [8, 16]", "hidden: [8, $hiden]", ["line 5", "hiden", "'hidden'"]),
        ("hidden: [8, 16]", f"hidden: [8, {'[' * 500}{']' * 500}]", ["deeper"]),
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


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("$width.p3", "$width.p9", ["line 20", "'p9'", "'small'", "'p3'"]),
        ("$width.p3", "$width.inner.p4", ["line 20", "'p4'", "p2"]),
        ("$width.p3", "$input.p3", ["line 20", "'p3'", "64"]),
        ("$width.p3", "$width", ["backbone.P3.channels"]),
        ("tokens: $k", "tokens: $kk", ["line 6", "'kk'", "'k'"]),
        ("k: [4, 9, all]", "k: [4, $gate]\n  deep: [$k]", ["line 9", "nothing refers", "deep"]),
        ("P4+P5: {P4: *", "P6+P5: {P6: *", ["'P6'", "'P5'", "'max'"]),
        ("k: [4, 9, all]", "k: [4, 9, most]", ["most", "attention.P5"]),
        ("k: [4, 9, all]", "k: [4, 3841]", ["3841", "3840"]),
        ("selection: [learned", "selection: [learnt", ["learnt", "'selection'"]),
    ],
)
def test_load__nested_names_rule_value_and_place(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in NESTED
    with pytest.raises(SpaceError) as caught:
        _load(tmp_path, NESTED.replace(old, new, 1))
    for word in words:
        assert word in str(caught.value)


def test_load__shows_the_circle_of_choices(tmp_path: Path) -> None:
    text = NESTED.replace("gate: [none, learned]", "gate: {a: $k, b: learned}").replace(
        "k: [4, 9, all]", "k: [4, {x: [$selection]}]"
    )
    with pytest.raises(SpaceError, match=re.escape("$k -> $selection -> $gate -> $k")):
        _load(tmp_path, text.replace("selection: [learned, ", "selection: [$gate, "))


def test_load__refuses_a_long_chain_of_choices(tmp_path: Path) -> None:
    chain = "".join(f"  c{n}: [$c{n - 1}]\n" for n in range(1, 400))
    text = NESTED.replace("  k: [4, 9, all]\n", f"  k: [$c399]\n  c0: [4]\n{chain}")
    with pytest.raises(SpaceError, match="more than 16 levels"):
        _load(tmp_path, text)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(5, ["P5", "5 tokens", "4 positions"]), (9, ["64x64"]), (3841, ["3840", "3841"])],
)
def test_load__stated_tokens_must_fit_every_input(
    tmp_path: Path, tokens: int, words: list[str]
) -> None:
    small = re.sub("  attention: .null.*\n", "", SMALL)
    text = small.replace("{P4: $attention}", f"{{P5: {{tokens: {tokens}}}}}")
    assert _load(tmp_path, text.replace(f"tokens: {tokens}", "tokens: 4")).size == 4
    with pytest.raises(SpaceError) as caught:
        _load(tmp_path, text)
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


def test_within__precisions_of_a_runtime(shipped_yolo_nas: SearchSpace) -> None:
    space = shipped_yolo_nas
    assert space.within(("fp32", "bf16", "int8", "fp16")) is space
    narrow = space.within(("fp32", "fp16"))
    assert narrow.precisions == ("fp32",)
    assert narrow.size * len(space.precisions) == space.size
    assert narrow.anchors["S"] == space.anchors["S"]
    assert narrow.candidate(narrow.anchors["min"], 1).precision == "fp32"
    assert narrow.digest != space.digest


def test_within__nothing_that_can_run(shipped_yolo_nas: SearchSpace) -> None:
    with pytest.raises(SpaceError, match="int8, bf16, fp32") as raised:
        shipped_yolo_nas.within(("fp16",))
    assert "fp16 can" in str(raised.value)


def test_in_precisions__one_is_fixed(shipped_yolo_nas: SearchSpace) -> None:
    space = shipped_yolo_nas.in_precisions(["fp16"])
    assert space.precisions == ("fp16",)
    assert "precision" not in space.choices
    assert space.size * 3 == shipped_yolo_nas.size
    assert space.candidate(space.anchors["S"], CLASSES).precision == "fp16"


def test_in_precisions__several_are_a_choice() -> None:
    digits = load_space("digits")
    space = digits.in_precisions(["int8", "bf16"])
    assert space.precisions == ("int8", "bf16")
    assert space.size == 2 * digits.size
    assert space.candidate(space.anchors["min"], CLASSES).precision == "int8"
    assert space.candidate(space.anchors["max"], CLASSES).precision == "bf16"
    assert space.digest != digits.digest
    same = space.candidate(space.anchors["max"], CLASSES).architecture
    assert same == digits.candidate(digits.anchors["max"], CLASSES).architecture


def test_in_precisions__none_or_unknown_is_an_error() -> None:
    with pytest.raises(SpaceError, match="at least one"):
        load_space("digits").in_precisions([])
    space = load_space("digits").in_precisions(["int9"])
    with pytest.raises(SpaceError, match="int9"):
        space.candidate(space.anchors["min"], CLASSES)


@pytest.fixture
def shipped_yolo_nas() -> SearchSpace:
    return load_space("yolo_nas")
