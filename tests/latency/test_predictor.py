from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.latency.predictor import COVERAGE, LEAST_SAMPLES, LatencyPredictor

COSTS = np.array([0.5, 0.0, 2.0, 0.1, 1.0])


def _networks(
    seed: int, count: int, noise: float = 0.02, *, bend: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Amounts and latencies: a sum with a launch overhead, that may be bent, with noise."""
    rng = np.random.default_rng(seed)
    features = rng.lognormal(0, 0.5, (count, len(COSTS)))
    ms = (features @ COSTS + 0.3) ** (1 + bend) * rng.lognormal(0, noise, count)
    return features, ms


@given(seed=st.integers(0, 50), scale=st.floats(1e-4, 1e4))
@settings(max_examples=25, deadline=None)
def test_predictor__follows_the_unit_of_its_latencies(seed: int, scale: float) -> None:
    features, ms = _networks(seed, 25)
    plain = LatencyPredictor.fit(features[:22], ms[:22])
    scaled = LatencyPredictor.fit(features[:22], ms[:22] * scale)
    for row in features[22:]:
        first, second = plain.predict(row), scaled.predict(row)
        expected = np.array([first.ms, first.low_ms, first.high_ms]) * scale
        np.testing.assert_allclose([second.ms, second.low_ms, second.high_ms], expected, rtol=1e-6)


@given(seed=st.integers(0, 50), shift=st.integers(1, 21))
@settings(max_examples=25, deadline=None)
def test_predictor__does_not_depend_on_the_order_of_samples(seed: int, shift: int) -> None:
    features, ms = _networks(seed, 23)
    order = np.roll(np.arange(22), shift)
    plain = LatencyPredictor.fit(features[:22], ms[:22]).predict(features[22])
    turned = LatencyPredictor.fit(features[order], ms[order]).predict(features[22])
    np.testing.assert_allclose(turned.ms, plain.ms, rtol=1e-6)
    np.testing.assert_allclose(turned.low_ms, plain.low_ms, rtol=1e-6)


@given(
    seed=st.integers(0, 50),
    row=st.lists(st.floats(0, 1e9), min_size=5, max_size=5),
    noise=st.sampled_from([0.0, 0.02, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_predictor__intervals_are_positive_and_hold_the_prediction(
    seed: int, row: list[float], noise: float
) -> None:
    found = LatencyPredictor.fit(*_networks(seed, 20, noise)).predict(np.array(row))
    assert 0 < found.low_ms <= found.ms <= found.high_ms < np.inf


def test_predictor__finds_the_law_of_exact_data() -> None:
    features, ms = _networks(0, 130, noise=0)
    predictor = LatencyPredictor.fit(features[:30], ms[:30])
    found = np.array([predictor.predict(row).ms for row in features[30:]])
    assert np.abs(found / ms[30:] - 1).max() < 0.03


@pytest.mark.parametrize("bend", [0.0, 0.2])
def test_predictor__intervals_hold_what_they_promise(bend: float) -> None:
    inside = []
    for seed in range(30):
        features, ms = _networks(seed, 90, bend=bend)
        predictor = LatencyPredictor.fit(features[:40], ms[:40])
        for row, true in zip(features[40:], ms[40:], strict=True):
            found = predictor.predict(row)
            inside.append(found.low_ms <= true <= found.high_ms)
    # 30 fits of independent data: the standard deviation of the mean is below 0.01.
    assert COVERAGE - 0.02 <= np.mean(inside) <= 0.985


def test_predictor__is_less_sure_of_networks_unlike_all_measured_ones() -> None:
    features, ms = _networks(1, 30)
    features[:, 4] = 0
    predictor = LatencyPredictor.fit(features, ms)
    usual, odd = features[0], features[0].copy()
    odd[4] = 1
    widths = [
        found.high_ms / found.low_ms for found in (predictor.predict(usual), predictor.predict(odd))
    ]
    assert widths[1] > widths[0] * 1.1


def test_predictor__a_slow_measurement_is_named_and_spoils_little() -> None:
    features, ms = _networks(2, 130, noise=0.01)
    spoilt = ms.copy()
    spoilt[7] *= 1.25
    predictor = LatencyPredictor.fit(features[:30], spoilt[:30])
    assert predictor.leave_one_out().suspects == (7,)
    found = np.array([predictor.predict(row).ms for row in features[30:]])
    assert np.abs(found / ms[30:] - 1).mean() < 0.02


def test_leave_one_out__is_what_fits_without_each_sample_say() -> None:
    features, ms = _networks(4, 24)
    figures = LatencyPredictor.fit(features, ms).leave_one_out()
    errors, inside = [], 0
    for row in range(24):
        rest = np.arange(24) != row
        found = LatencyPredictor.fit(features[rest], ms[rest]).predict(features[row])
        errors.append(found.ms / ms[row] - 1)
        inside += found.low_ms <= ms[row] <= found.high_ms
    # Amounts are in units of the mean network, which differs a little without a sample.
    np.testing.assert_allclose(figures.errors, errors, atol=3e-3)
    assert figures.mape == pytest.approx(np.abs(errors).mean(), abs=1e-3)
    assert figures.coverage == inside / 24
    assert figures.median <= figures.mape * 2
    assert 0.9 < figures.spearman <= 1


@pytest.mark.parametrize(
    ("features", "ms", "message"),
    [
        (np.ones((18, 2)), np.ones(18), f"at least {LEAST_SAMPLES}"),
        (np.ones((20, 2)), np.ones((20, 1)), "at least"),
        (np.ones((20, 2)), np.zeros(20), "finite and > 0"),
        (np.ones((20, 2)), np.full(20, np.nan), "finite and > 0"),
        (np.ones((19, 2)), np.ones(20), "table of 20 rows"),
        (np.ones((20, 0)), np.ones(20), "table of 20 rows"),
        (-np.ones((20, 2)), np.ones(20), "finite and >= 0"),
        (np.full((20, 2), np.inf), np.ones(20), "finite and >= 0"),
    ],
)
def test_fit__impossible_samples_are_an_error(
    features: np.ndarray, ms: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        LatencyPredictor.fit(features, ms)


def test_predict__what_the_fit_did_not_see_is_an_error() -> None:
    features, ms = _networks(0, 20)
    plain = LatencyPredictor.fit(features, ms)
    with pytest.raises(InputError, match="Features must be 5 numbers"):
        plain.predict(features[0][:3])
    with pytest.raises(InputError, match="finite and >= 0"):
        plain.predict(np.full(5, np.nan))
