from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from choices import NESTED, SMALL, load_text
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import SpaceError
from nas.model.supernet import Supernet
from nas.space.architecture import Candidate, digest_of
from nas.space.space import Point, SearchSpace, load_space, shipped_spaces

CLASSES = 10
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def digits() -> SearchSpace:
    return load_space("digits")


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    return load_text(tmp_path_factory.mktemp("nested"), NESTED)


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
    space = load_text(tmp_path, turned)
    assert space.anchors["max"]["insertion"] == "none"
    assert space.revealing("k") == {**space.anchors["max"], "insertion": "P4+P5"}
    assert space.revealing("input") == space.anchors["max"]
    with pytest.raises(SpaceError, match="big"):
        load_text(tmp_path, turned.replace("k: [4, 9, all]", "k: [4, big]"))


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
    space = load_text(tmp_path, SMALL)
    assert space.anchors["min"] == {"input": 64, "hidden": 8, "attention": "none"}
    assert space.anchors["max"] == {"input": 96, "hidden": 16, "attention": "dense"}
    assert space.anchors["wide"] == {"input": 64, "hidden": 16, "attention": "none"}
    assert space.size == 12


def test_candidate__one_choice_fills_every_reference(tmp_path: Path) -> None:
    space = load_text(tmp_path, SMALL)
    backbone = space.candidate(space.anchors["wide"], CLASSES).architecture.backbone
    assert (backbone.P2.hidden, backbone.P3.hidden, backbone.P4.hidden) == (16, 16, 8)


def test_candidate__more_tokens_than_the_map_has_are_dense(tmp_path: Path) -> None:
    space = load_text(tmp_path, SMALL)
    point = {"input": 64, "hidden": 8, "attention": "sparse-16"}
    dense = space.candidate({**point, "attention": "dense"}, CLASSES)
    assert space.candidate(point, CLASSES).digest == dense.digest
    wide = space.candidate({**point, "input": 96}, CLASSES).architecture
    assert wide.attention.P4 is not None
    assert wide.attention.P4.tokens == 16


def test_covering__holds_every_option(tmp_path: Path) -> None:
    space = load_text(tmp_path, SMALL)
    covering = space.covering(CLASSES)
    assert {a.input[0] for a in covering} == {64, 96}
    assert {a.attention.P4 is None for a in covering} == {True, False}
    assert len(covering) == 1 + 1 + 1 + 2


@pytest.mark.parametrize("turned", [False, True])
def test_covering__a_supernet_holds_every_candidate(tmp_path: Path, turned: bool) -> None:
    text = NESTED
    if turned:  # the largest others hide more: no insertion, and among all positions
        text = text.replace("    none: {}\n", "").replace("  k: [", "    none: {}\n  k: [")
    space = load_text(tmp_path, text)
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
    given = load_text(tmp_path, SMALL.replace("hidden: [8, 16]", "hidden: {8: 8, 16: 16}"))
    assert given.digest == load_text(tmp_path, SMALL).digest


def test_digest__follows_meaning_not_words(tmp_path: Path) -> None:
    space = load_text(tmp_path, SMALL)
    reworded = load_text(tmp_path, SMALL.replace("Two stages", "Some stages"))
    widened = load_text(tmp_path, SMALL.replace("[64, 96]", "[64, 96, 128]"))
    assert space.digest == reworded.digest != widened.digest


@pytest.mark.parametrize(
    "point", [{"input": 64}, {"input": 65, "hidden": 8, "attention": "none"}, {"no": 1}]
)
def test_candidate__refuses_bad_points(tmp_path: Path, point: dict[str, int | str]) -> None:
    with pytest.raises(SpaceError):
        load_text(tmp_path, SMALL).candidate(point, CLASSES)


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
