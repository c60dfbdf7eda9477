from __future__ import annotations

import math

import numpy as np
import pytest

from nas.searcher.importance import Importance, explain
from nas.searcher.importance_sample import Sample

CHOICES = {"input": (64, 96), "block": ("a", "b", "c"), "fixed": (1,)}


@pytest.fixture(scope="module")
def found() -> Importance:
    """Input 96 takes half as long again and brings 5 points; slow candidates were never scored."""
    generator = np.random.default_rng(0)
    codes = np.stack([generator.integers(0, n, 60) for n in (2, 3, 1)], axis=1)
    latency_ms = 2.0 * 1.5 ** codes[:, 0] * np.exp(generator.normal(0, 0.02, 60))
    accuracy = 0.3 + 0.05 * codes[:, 0] + generator.normal(0, 0.005, 60)
    accuracy[latency_ms > 3.05] = np.nan
    return explain("s", Sample(CHOICES, codes, accuracy, latency_ms, {"measured": 60}))


def test_latency__effects_are_shares_of_the_geometric_mean(found: Importance) -> None:
    small, large = found.latency.choices[0].options
    assert (1 + large.effect) / (1 + small.effect) == pytest.approx(1.5, rel=0.02)
    assert small.low < small.effect < small.high < 0 < large.low
    # Around the geometric mean, not the arithmetic one: logarithms average to 0.
    mean = small.tried * math.log1p(small.effect) + large.tried * math.log1p(large.effect)
    assert mean == pytest.approx(0, abs=1e-9)


def test_accuracy__uses_what_was_scored_and_latency_all(found: Importance) -> None:
    assert found.latency.candidates == 60
    assert 20 < found.accuracy.candidates < 60


def test_accuracy__a_budget_that_selects_by_choices_does_no_harm(found: Importance) -> None:
    small, large = found.accuracy.choices[0].options
    assert large.effect - small.effect == pytest.approx(0.05, abs=0.005)


def test_choices__with_one_option_are_left_out(found: Importance) -> None:
    assert [one.name for one in found.latency.choices] == ["input", "block"]


def test_choices__without_effect_are_not_told(found: Importance) -> None:
    told = [
        {one.name: one.is_told for one in side.choices} for side in (found.accuracy, found.latency)
    ]
    assert told == [{"input": True, "block": False}] * 2


def test_explain__too_few_scores_leave_the_latency() -> None:
    generator = np.random.default_rng(1)
    codes = np.stack([generator.integers(0, n, 30) for n in (2, 3, 1)], axis=1)
    accuracy = np.full(30, np.nan)
    accuracy[:4] = 0.3
    found = explain("s", Sample(CHOICES, codes, accuracy, np.exp(generator.normal(0, 1, 30))))
    assert "4 with an accuracy" in found.accuracy.reason
    assert not found.latency.reason
