"""Rules that need no search; searches beside them are in `tests/results/test_confirming.py`."""

from __future__ import annotations

import itertools

import pytest

from nas.model.detector import profile
from nas.searcher.baselines import scaling_ladder
from nas.searcher.points import is_ordered
from nas.space.space import load_space, shipped_spaces

SPACE = load_space("digits")


@pytest.mark.parametrize("name", shipped_spaces())
@pytest.mark.parametrize("kinds", ["min", "max"])
def test_ladder__goes_from_the_largest_sizes_to_the_smallest(name: str, kinds: str) -> None:
    space = load_space(name)
    ladder = scaling_ladder(space, kinds)
    for choice, labels in space.choices.items():
        steps = [labels.index(point[choice]) for point in ladder]
        if is_ordered(labels):
            assert steps[0] == len(labels) - 1
            assert steps[-1] == 0
            assert steps == sorted(steps, reverse=True)
        else:
            assert {point[choice] for point in ladder} == {space.anchors[kinds][choice]}
    assert all(one != other for one, other in itertools.pairwise(ladder))


def test_ladder__ends_at_the_anchors_of_its_kinds() -> None:
    assert scaling_ladder(SPACE, "max")[0] == SPACE.anchors["max"]
    assert scaling_ladder(SPACE, "min")[-1] == SPACE.anchors["min"]


def test_ladder__moves_all_sizes_together() -> None:
    """Every level is smaller than the one before; a space has a handful of them."""
    ladder = scaling_ladder(SPACE, "max")
    macs = [profile(SPACE.candidate(point, 10).architecture).macs for point in ladder]
    assert macs == sorted(macs, reverse=True)
    assert 4 <= len(ladder) <= 8
