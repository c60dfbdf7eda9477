"""Latencies on a new device, from those on known ones and a few measurements."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import check_grad
from scipy.stats import spearmanr

from nas.errors import InputError
from nas.latency.transfer import (
    LEAST_SAMPLES,
    TransferPredictor,
    _covariance,
    _Distances,
    _misfit,
    _quantile,
    _Scale,
    _starts,
    choose,
)

Values = NDArray[np.float64]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def networks(count: int, devices: int, seed: int = 0) -> tuple[Values, Values, Values]:
    """Networks of many sizes and kinds: features, known latencies, latency on a new device."""
    random = np.random.default_rng(seed)
    work, depth = random.uniform(0, 4, count), random.uniform(0, 1, count)
    costs = random.uniform(0.5, 2, (2, devices + 1))
    floors = random.uniform(0.5, 3, devices + 1)
    table = np.exp(work)[:, None] * costs[0] + np.exp(depth)[:, None] * costs[1] + floors
    return np.column_stack([work, depth]), table[:, 1:], table[:, 0]


def fitted(devices: int = 2, count: int = 20) -> tuple[TransferPredictor, Values, Values, Values]:
    features, sources, ms = networks(200, devices)
    rows = choose(features, sources, count)
    return (
        TransferPredictor.fit(features[rows], sources[rows], ms[rows]),
        np.delete(features, rows, 0),
        np.delete(sources, rows, 0),
        np.delete(ms, rows),
    )


@pytest.mark.parametrize("devices", [1, 3])
def test_transfer__learns_a_device_from_twenty_networks(devices: int) -> None:
    model, features, sources, ms = fitted(devices)
    found = model.predict(features, sources)
    assert model.samples == 20
    assert np.median(np.abs(found.ms / ms - 1)) < 0.02
    assert np.mean((found.low_ms <= ms) & (ms <= found.high_ms)) > 0.9
    assert np.all((found.low_ms < found.ms) & (found.ms < found.high_ms))


def test_transfer__needs_no_features() -> None:
    _, sources, ms = networks(200, 3)
    nothing = np.empty((200, 0))
    rows = choose(nothing, sources, 20)
    found = TransferPredictor.fit(nothing[rows], sources[rows], ms[rows]).predict(nothing, sources)
    assert np.median(np.abs(found.ms / ms - 1)) < 0.05


def test_transfer__of_a_faster_copy_is_exact() -> None:
    features, sources, _ = networks(60, 1)
    found = TransferPredictor.fit(features[:20], sources[:20], sources[:20, 0] / 3).predict(
        features, sources
    )
    np.testing.assert_allclose(found.ms, sources[:, 0] / 3, rtol=0.01)


@settings(max_examples=10, deadline=None)
@given(units=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3))
def test_transfer__units_of_devices_do_not_matter(units: list[float]) -> None:
    features, sources, ms = networks(30, 2)
    rows = np.arange(8)

    def predicted(scaled: Values, known: Values) -> Values:
        model = TransferPredictor.fit(features[rows], known[rows], scaled[rows])
        return model.predict(features, known).ms

    expected = predicted(ms, sources) * units[0]
    np.testing.assert_allclose(
        predicted(ms * units[0], sources * np.array(units[1:])), expected, rtol=1e-3
    )


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_transfer__of_any_latencies_is_finite(data: st.DataObject) -> None:
    latencies = st.lists(st.floats(1e-3, 1e4), min_size=6, max_size=6)
    table = np.array([data.draw(latencies) for _ in range(3)])
    features = np.round(np.log(table[:1].T), 1)
    found = TransferPredictor.fit(features, table[1:].T, table[0]).predict(features, table[1:].T)
    assert np.all(np.isfinite(found))
    assert np.all((found.low_ms <= found.ms) & (found.ms <= found.high_ms))


def test_transfer__is_less_sure_far_from_what_was_measured() -> None:
    features, sources, ms = networks(200, 2)
    near = np.flatnonzero(features[:, 0] < 1)[:20]
    model = TransferPredictor.fit(features[near], sources[near], ms[near])
    low, high = model.predict(features, sources)[1:]
    width = np.log(high / low)
    assert np.median(width[features[:, 0] > 3]) > 2 * np.median(width[features[:, 0] < 1])


def test_transfer__with_noise_has_intervals_that_hold() -> None:
    inside, widths = [], []
    for seed in range(4):
        features, sources, ms = networks(200, 2, seed)
        noisy = ms * np.exp(np.random.default_rng(seed + 50).normal(0, 0.1, 200))
        model = TransferPredictor.fit(features[:30], sources[:30], noisy[:30])
        low, high = model.predict(features[30:], sources[30:])[1:]
        inside.append(np.mean((low <= noisy[30:]) & (noisy[30:] <= high)))
        widths.append(np.median(np.log(high / low) / 2))
    assert np.mean(inside) > 0.9
    assert np.mean(widths) < 4 * 0.1


def test_transfer__a_feature_that_never_varied_says_nothing_of_networks_alike() -> None:
    features, sources, ms = networks(40, 2)
    wider = np.column_stack([features, np.full(40, 7.0)])
    rows = np.arange(15)
    found = TransferPredictor.fit(wider[rows], sources[rows], ms[rows]).predict(wider, sources)
    assert np.all(np.isfinite(found.ms))
    unlike = wider.copy()
    unlike[:, 2] = 9.0
    other = TransferPredictor.fit(wider[rows], sources[rows], ms[rows]).predict(unlike, sources)
    assert np.all(other.high_ms / other.low_ms >= found.high_ms / found.low_ms)


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 9))
def test_choose__names_different_networks_and_only_adds_to_them(count: int, seed: int) -> None:
    features, sources, _ = networks(40, 2, seed)
    found = choose(features, sources, count)
    assert len(set(found)) == count
    assert found == choose(features, sources, 40)[:count]


def test_choose__covers_sizes_and_kinds_better_than_chance() -> None:
    features, sources, _ = networks(300, 3)
    features = np.column_stack([features, np.eye(6)[np.arange(300) % 6]])
    rows = choose(features, sources, 20)
    assert set(np.array(rows) % 6) == set(range(6))
    quarter = np.searchsorted(np.quantile(features[:, 0], [0.25, 0.5, 0.75]), features[rows, 0])
    assert min(np.bincount(quarter, minlength=4)) >= 2


def test_slopes__are_those_of_the_likelihood() -> None:
    features, sources, ms = networks(12, 3)
    inputs = _Scale.of(features, sources).inputs(features, sources)
    parts = _Distances.between(inputs, inputs)
    values = np.log(ms) - inputs.level
    for start in _starts():
        logs = np.log(list(start.values()))

        def named(at: Values, names: tuple[str, ...] = tuple(start)) -> dict[str, float]:
            return dict(zip(names, np.exp(at).tolist(), strict=True))

        wrong = check_grad(
            lambda at: _misfit(parts, values, named(at))[0],
            lambda at: _misfit(parts, values, named(at))[1],
            logs,
        )
        assert wrong < 1e-3 * np.linalg.norm(_misfit(parts, values, named(logs))[1])


def test_own_distances__are_the_diagonal() -> None:
    features, sources, _ = networks(12, 3)
    inputs = _Scale.of(features, sources).inputs(features, sources)
    for numbers in _starts():
        whole = _covariance(_Distances.between(inputs, inputs), numbers)
        own = _covariance(_Distances.own(inputs), numbers)
        np.testing.assert_allclose(own[:, 0], np.diag(whole))


def test_quantile__is_the_largest_error_of_nineteen() -> None:
    assert _quantile(np.arange(19.0)) == 18
    assert _quantile(np.arange(39.0)) == 37


def test_quantile__of_few_errors_is_wider_than_a_normal_one() -> None:
    assert _quantile(np.ones(10)) > 1.96
    assert _quantile(np.ones(5)) > _quantile(np.ones(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, s, y: (f, s, y[:-1]), "As many measurements"),
        (lambda f, s, y: (f[:4], s[:4], y[:4]), f"at least {LEAST_SAMPLES}, got 4"),
        (lambda f, s, y: (f[:-1], s, y), "row for each network"),
        (lambda f, s, y: (f, s[:, :0], y), "at least one known device"),
        (lambda f, s, y: (f * np.nan, s, y), "Features must be finite"),
        (lambda f, s, y: (f, -s, y), "> 0 ms, got -"),
        (lambda f, s, y: (f, s, y * np.inf), "> 0 ms, got inf"),
    ],
)
def test_fit__refuses(change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(InputError, match=message):
        TransferPredictor.fit(*change(*networks(20, 2)))


def test_predict__refuses_other_columns() -> None:
    model, features, sources, _ = fitted()
    with pytest.raises(InputError, match="The fit had 2 features and 2 known devices, got 2 and 1"):
        model.predict(features, sources[:, :1])


def test_choose__refuses_more_than_there_are() -> None:
    features, sources, _ = networks(10, 2)
    with pytest.raises(InputError, match="Of 10 networks"):
        choose(features, sources, 11)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("new_device", BENCHMARKS / "new_device.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_transfer__knows_a_raspberry_pi_better_than_a_ridge_does(benchmark: ModuleType) -> None:
    table = benchmark.load_yolobench()
    columns = list(benchmark.LATENCIES.values())
    features, sources = benchmark.features_of(table), table[columns[:3]].to_numpy()
    ms = table[columns[3]].to_numpy()
    rows = choose(features, sources, 20)
    model = TransferPredictor.fit(features[rows], sources[rows], ms[rows])
    found = model.predict(features, sources)
    error = np.median(np.abs(found.ms / ms - 1))
    ridge = benchmark._ridge(features, sources, ms, rows)[0]
    assert error < 0.06 < np.median(np.abs(ridge / ms - 1))
    assert spearmanr(found.ms, ms).statistic > 0.99
    assert np.mean((found.low_ms <= ms) & (ms <= found.high_ms)) > 0.9
