"""Differences between networks: their intervals hold images and trainings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nas.errors import InputError
from nas.results.ablation import t_interval
from nas.results.comparison import Scores, TrainingNoise, paired_difference


def scores(reached: list[float], noise: float = 0.01, seed: int = 0) -> Scores:
    """Networks whose resamples move together, as those of equal images do."""
    images = np.random.default_rng(seed).normal(0, noise, 200)
    values = np.array(reached)
    return Scores(values, values[:, None] + images)


def test_difference__of_common_images_has_no_error_of_images() -> None:
    """Both move together between resamples; only the seeds differ: -+ t(0.975; 2) s / sqrt(3)."""
    ours, theirs = scores([0.62, 0.63, 0.64]), scores([0.60, 0.60, 0.60])
    found = paired_difference(ours, theirs)
    assert found.value == pytest.approx(0.03)
    assert found.high - found.value == pytest.approx(4.3027 * 0.01 / np.sqrt(3), rel=1e-3)


def test_difference__of_equal_seeds_has_the_error_of_images_alone() -> None:
    ours, theirs = scores([0.62] * 3, seed=1), scores([0.60] * 3, seed=2)
    found = paired_difference(ours, theirs)
    spread = float(np.std(ours.resampled[0] - theirs.resampled[0], ddof=1))
    assert found.high - found.value == pytest.approx(1.96 * spread, rel=1e-3)


def test_difference__of_one_seed_is_a_bootstrap_over_images() -> None:
    ours, theirs = scores([0.62], seed=1), scores([0.60], seed=2)
    draws = ours.resampled[0] - theirs.resampled[0]
    low, high = np.quantile(draws, [0.025, 0.975]) - draws.mean() + 0.02
    found = paired_difference(ours, theirs)
    assert (found.value, found.low, found.high) == pytest.approx((0.02, low, high))
    assert np.isnan(ours.over_seeds.low)


def test_difference__holds_the_truth_as_often_as_it_says() -> None:
    """Images and seeds both differ: the true difference of 0 lies in 95 % of intervals."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(400):
        truth = generator.normal(0, 0.01)  # what this split's images add to the difference
        ours = truth + generator.normal(0, 0.01, 3)
        resampled = ours[:, None] + generator.normal(0, 0.01, 200)
        found = paired_difference(Scores(ours, resampled), Scores(0 * ours, 0 * resampled))
        held += found.low <= 0 <= found.high
    assert 0.91 < held / 400 < 0.99


def test_difference__needs_pairs() -> None:
    with pytest.raises(InputError, match="paired by seed"):
        paired_difference(scores([0.6, 0.6]), scores([0.6]))
    with pytest.raises(InputError, match="S seeds"):
        Scores(np.zeros(2), np.zeros((3, 4)))


@given(arrays(float, (2, 4), elements=st.floats(0, 1)))
def test_noise__of_two_networks_is_that_of_their_paired_differences(
    reached: np.ndarray,
) -> None:
    found = TrainingNoise.of([scores(list(row)) for row in reached])
    assert found is not None
    assert found.freedom == 3
    assert 2 * found.variance == pytest.approx(np.var(reached[0] - reached[1], ddof=1))


@given(arrays(float, (5, 3), elements=st.floats(0, 1)), st.integers(0, 2))
def test_noise__does_not_hear_of_networks_and_seeds_that_are_better(
    reached: np.ndarray, place: int
) -> None:
    plain = TrainingNoise.of([scores(list(row)) for row in reached])
    reached[place] += 0.3
    reached[:, place] -= 0.2
    moved = TrainingNoise.of([scores(list(row)) for row in reached])
    assert plain is not None
    assert moved is not None
    assert moved.variance == pytest.approx(plain.variance, abs=1e-12)


def test_noise__needs_two_networks_and_two_seeds() -> None:
    assert TrainingNoise.of([scores([0.6, 0.7])]) is None
    assert TrainingNoise.of([scores([0.6]), scores([0.7])]) is None


def test_difference__of_two_networks_alone_is_the_t_interval_of_their_pairs() -> None:
    ours, theirs = scores([0.62, 0.63, 0.67]), scores([0.60, 0.64, 0.60])
    expected = t_interval((ours.reached - theirs.reached).tolist())
    found = paired_difference(ours, theirs)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_difference__holds_the_truth_with_the_noise_of_all_and_is_narrower() -> None:
    """Five equal networks, two seeds each: alone a pair has 1 degree of freedom, together 4."""
    generator, held, widths = np.random.default_rng(1), 0, []
    for _ in range(400):
        reached = generator.normal(0.6, 0.01, (5, 2))
        networks = [Scores(row, np.repeat(row[:, None], 50, axis=1)) for row in reached]
        together = paired_difference(*networks[:2], TrainingNoise.of(networks))
        alone = paired_difference(*networks[:2])
        held += together.low <= 0 <= together.high
        widths.append((together.high - together.low, alone.high - alone.low))
    assert 0.92 < held / 400 < 0.98
    narrow, wide = np.mean(widths, axis=0)
    assert narrow < 0.4 * wide
