"""What several builds of one engine say about the next one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from environments import ENVIRONMENT
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.latency.latency import Latency
from nas.latency.rebuilt import LEAST_BUILDS, Rebuilt
from nas.units import Budget


def built(*values_ms: float, width: float = 0.001) -> Rebuilt:
    """Builds whose own intervals are `width` to each side, relative to them."""
    return Rebuilt(
        tuple(
            Latency(ms, ms * (1 - width), ms * (1 + width), "measured", ENVIRONMENT)
            for ms in values_ms
        )
    )


def test_bound__is_the_prediction_bound_of_one_further_build() -> None:
    """Worked by hand: t(0.99; 2) = 6.9646 and logarithms -a, 0, a with standard deviation a."""
    a = 0.01
    rebuilt = built(math.exp(-a), 1.0, math.exp(a))
    assert rebuilt.ms == pytest.approx(1)
    assert rebuilt.spread == pytest.approx(a)
    assert rebuilt.bound_ms(0.99) == pytest.approx(math.exp(6.9646 * a * math.sqrt(4 / 3)), 1e-5)


@pytest.mark.parametrize("builds", [3, 6])
def test_bound__holds_fresh_builds_as_often_as_it_says(builds: int) -> None:
    generator = np.random.default_rng(0)
    over = 0
    for _ in range(600):
        *known, fresh = np.exp(generator.normal(0, 0.01, builds + 1)).tolist()
        over += fresh > built(*known, width=1e-6).bound_ms(0.9)
    assert 0.07 < over / 600 < 0.13


@given(st.lists(st.floats(0.5, 2), min_size=2, max_size=6), st.floats(0.6, 0.98))
def test_bound__grows_with_confidence_and_lies_above_the_mean(
    values: list[float], confidence: float
) -> None:
    rebuilt = built(*values)
    assert rebuilt.ms < rebuilt.bound_ms(confidence) < rebuilt.bound_ms(0.99)
    latency = rebuilt.latency
    assert latency.low_ms < latency.ms < latency.high_ms
    assert latency.high_ms == pytest.approx(rebuilt.bound_ms(0.975))


def test_spread__is_never_below_the_error_of_one_measurement() -> None:
    equal = built(1.0, 1.0, 1.0, width=0.0196)
    assert equal.spread == pytest.approx(0.01, rel=1e-3)


def test_bound__of_one_build_is_its_interval() -> None:
    single = built(1.0, width=0.1)
    assert single.bound_ms() == pytest.approx(1.1)
    assert single.latency == single.builds[0]


def test_decided__needs_builds_enough_and_stops_where_more_say_nothing() -> None:
    near = built(0.99, 1.0, 1.01)
    assert not built(0.5, 0.5).decided(Budget(1.0), 6)  # too few of them
    assert near.decided(Budget(2.0), 6)  # surely keeps it
    assert near.decided(Budget(0.9), 6)  # breaks it on the mean
    assert not near.decided(Budget(1.02), 6)  # more builds may make it sure
    assert near.decided(Budget(1.02), LEAST_BUILDS)  # no more are allowed
    assert not near.keeps(Budget(1.02))


def test_builds__of_two_environments_are_refused() -> None:
    other = dataclasses.replace(ENVIRONMENT, threads=2)
    one = built(1.0).builds[0]
    with pytest.raises(InputError, match="2 environments"):
        Rebuilt((one, dataclasses.replace(one, environment=other)))
    with pytest.raises(InputError, match="0 builds"):
        Rebuilt(())
