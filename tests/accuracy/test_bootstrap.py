from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.accuracy.bootstrap import average_precision, bootstrap_interval, centred_interval
from nas.accuracy.dataset import Annotations
from nas.accuracy.detections import Detections
from nas.accuracy.matching import match_objects

Sample = tuple[list[Detections], list[Annotations]]


def _interval(
    detections: list[Detections], annotations: list[Annotations], seed: int
) -> tuple[float, float]:
    return bootstrap_interval(match_objects(detections, annotations), len(annotations), seed)


def _mean_ap(detections: list[Detections], annotations: list[Annotations]) -> float:
    weights = np.ones((1, len(annotations)), np.int64)
    matches = match_objects(detections, annotations).values()
    return float(np.mean([average_precision(each, weights)[:, 0].mean() for each in matches]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("crowds", [True, False])
def test_average_precision__weights_equal_copies(
    seed: int, crowds: bool, noisy_sample: Sample
) -> None:
    detections, annotations = noisy_sample
    # Among equal scores the metric depends on the order, which copying changes.
    rng = np.random.default_rng(0)
    detections = [replace(each, scores=np.sort(rng.random(len(each)))[::-1]) for each in detections]
    if not crowds:
        annotations = [each.select(~each.crowd) for each in annotations]
    drawn = np.random.default_rng(seed).integers(len(annotations), size=len(annotations))
    copied = _mean_ap([detections[i] for i in drawn], [annotations[i] for i in drawn])
    weights = np.bincount(drawn, minlength=len(annotations))[None]
    matches = match_objects(detections, annotations).values()
    assert np.nanmean(
        [average_precision(each, weights)[:, 0].mean() for each in matches]
    ) == pytest.approx(copied, abs=1e-12)


def test_interval__holds_the_estimate_and_repeats(noisy_sample: Sample) -> None:
    low, high = _interval(*noisy_sample, seed=0)
    assert low < _mean_ap(*noisy_sample) < high
    assert _interval(*noisy_sample, seed=0) == (low, high)
    assert _interval(*noisy_sample, seed=1) != (low, high)


def test_interval__narrows_with_more_images(noisy_sample: Sample) -> None:
    detections, annotations = noisy_sample
    low, high = _interval(detections, annotations, seed=0)
    many_low, many_high = _interval(detections * 9, annotations * 9, seed=0)
    assert many_high - many_low < 0.6 * (high - low)


def test_interval__perfect_detections_have_no_width(noisy_sample: Sample) -> None:
    _, annotations = noisy_sample
    perfect = [Detections(a.boxes, np.ones(len(a), np.float32), a.labels) for a in annotations]
    assert _interval(perfect, annotations, seed=0) == pytest.approx((1, 1))


@given(st.floats(0, 1), st.floats(-0.3, 0.3), st.integers(0, 99))
def test_centred_interval__does_not_hear_of_a_bias(value: float, bias: float, seed: int) -> None:
    draws = value + np.random.default_rng(seed).normal(0, 0.02, 400)
    plain, moved = (centred_interval(value, one) for one in (draws, draws + bias))
    assert moved == pytest.approx(plain)
    assert plain[0] < value < plain[1]
    assert plain[1] - plain[0] == pytest.approx(np.ptp(np.quantile(draws, [0.025, 0.975])))
