from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.accuracy.sampling import Draws, Subnets
from nas.errors import InputError
from nas.space.architecture import Architecture
from nas.space.space import SearchSpace, load_space


@pytest.fixture(scope="module")
def digits() -> SearchSpace:
    return load_space("digits")


def _pixels(architecture: Architecture) -> float:
    """A cost that needs no network."""
    return float(math.prod(architecture.input))


def _drawn(draws: Draws, steps: range, seed: int = 0) -> list[Architecture]:
    return [draws(step, np.random.default_rng([seed, step])) for step in steps]


@pytest.mark.parametrize("options", [{}, {"fair": True}, {"fair": True, "strata": 4}])
def test_draws__are_a_function_of_seed_and_step(
    digits: SearchSpace, options: dict[str, Any]
) -> None:
    draws = Draws(digits, 10, seed=3, cost=_pixels, **options)
    again = Draws(digits, 10, seed=3, cost=_pixels, **options)
    assert _drawn(draws, range(20)) == _drawn(draws, range(20))
    assert _drawn(draws, range(12, 20)) == _drawn(again, range(20))[12:]


def test_draws__without_rules_are_points_drawn_uniformly(digits: SearchSpace) -> None:
    found = Draws(digits, 10)(7, np.random.default_rng(5))
    assert found == digits.candidate(digits.sample(np.random.default_rng(5)), 10).architecture


@given(seed=st.integers(0, 2**31), start=st.integers(0, 500))
@settings(max_examples=10, deadline=None)
def test_draws__fair_take_each_type_of_block_once_in_two_steps(seed: int, start: int) -> None:
    draws = Draws(load_space("digits"), 10, seed=seed, fair=True)
    first, second = _drawn(draws, range(2 * start, 2 * start + 2), seed)
    for level in ("P2", "P3", "P4", "P5"):
        blocks = {getattr(one.backbone, level).block for one in (first, second)}
        assert blocks == {"c2f", "qarepvgg_csp"}


def test_draws__fair_order_types_of_different_levels_apart(digits: SearchSpace) -> None:
    found = _drawn(Draws(digits, 10, fair=True), range(64))
    pairs = Counter((one.backbone.P3.block, one.backbone.P4.block) for one in found)
    assert len(pairs) == 4
    assert min(pairs.values()) >= 6


def test_draws__fair_have_attention_at_a_level_every_other_time(digits: SearchSpace) -> None:
    fair, chance = (_drawn(Draws(digits, 10, fair=fair), range(80)) for fair in (True, False))
    for level in ("P3", "P4", "P5"):
        present = [getattr(one.attention, level) is not None for one in fair]
        assert np.mean(present) == 0.5
        assert np.mean([getattr(one.attention, level) is not None for one in chance]) > 0.55
    kinds = {one.attention.P3.kind for one in fair if one.attention.P3}
    assert kinds == {"sparse", "dense"}


def test_draws__fair_insert_attention_by_place() -> None:
    found = _drawn(Draws(load_space("hsv_det"), 3, fair=True), range(8))
    places = Counter(tuple(one.attention.model_dump(exclude_none=True)) for one in found)
    assert places == dict.fromkeys([(), ("P5",), ("P4", "P5"), ("P3", "P4", "P5")], 2)


def test_draws__strata_come_equally_often(digits: SearchSpace) -> None:
    def cost(architecture: Architecture) -> float:
        backbone = architecture.backbone
        hidden = [getattr(backbone, level).hidden for level in ("P2", "P3", "P4", "P5")]
        return _pixels(architecture) * math.prod(hidden)

    found = np.log([cost(one) for one in _drawn(Draws(digits, 10, strata=3, cost=cost), range(90))])
    chance = np.log([cost(one) for one in _drawn(Draws(digits, 10), range(90))])
    edges = np.linspace(chance.min(), chance.max(), 4)[1:-1]
    stratified, independent = (np.bincount(np.digitize(x, edges)) for x in (found, chance))
    assert independent.min() < 15  # of 30
    assert stratified.min() > 1.3 * independent.min()


@pytest.mark.parametrize("options", [{"strata": -1, "cost": _pixels}, {"strata": 2}])
def test_draws__senseless_strata(digits: SearchSpace, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Strata"):
        Draws(digits, 10, **options)


def test_subnets__sandwich_of_draws_share_the_drawn_input(digits: SearchSpace) -> None:
    largest, smallest = (
        digits.candidate(digits.anchors[name], 10).architecture for name in ("max", "min")
    )
    draws = Draws(digits, 10, fair=True)
    chosen = Subnets("sandwich", draws, largest, smallest)(3, np.random.default_rng(0))
    assert {one.input for one in chosen} == {draws(3, np.random.default_rng(0)).input}
    assert chosen[0] == largest.at_input(chosen[0].input)
