"""What several builds of one engine say about the next one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from environments import ENVIRONMENT
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nas.errors import InputError
from nas.latency.latency import Latency
from nas.latency.rebuilt import ALIKE, LEAST_CHANCE, MOST_BUILDS, Rebuilt, Spread
from nas.units import Budget


def built(*values_ms: float, width: float = 0.001, others: Spread | None = None) -> Rebuilt:
    """Builds whose own intervals are `width` to each side, relative to them."""
    builds = tuple(
        Latency(ms, ms * (1 - width), ms * (1 + width), "measured", ENVIRONMENT) for ms in values_ms
    )
    return Rebuilt(builds, others)


def test_bound__is_the_prediction_bound_of_one_further_build() -> None:
    """Worked by hand: t(0.99; 2) = 6.9646 and logarithms -a, 0, a with standard deviation a."""
    a = 0.01
    rebuilt = built(math.exp(-a), 1.0, math.exp(a))
    assert rebuilt.ms == pytest.approx(1)
    assert rebuilt.spread is not None
    assert (rebuilt.spread.deviation, rebuilt.spread.freedom) == (pytest.approx(a), 2)
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
    assert equal.spread is not None
    assert equal.spread.deviation == pytest.approx(0.01, rel=1e-3)


def test_bound__of_one_build_is_its_interval() -> None:
    single = built(1.0, width=0.1)
    assert single.bound_ms() == pytest.approx(1.1)
    assert single.latency == single.builds[0]


def test_spread__beside_others_is_weighted_by_freedom() -> None:
    """Worked by hand: others of 10 degrees of freedom are worth 1 / (1 / 10 + 1 / 5) = 10 / 3."""
    a, b = 0.01, 0.02
    rebuilt = built(math.exp(-a), 1.0, math.exp(a), others=Spread(b, 10))
    assert ALIKE == 5
    freedom = 2 + 10 / 3
    deviation = math.sqrt((2 * a**2 + 10 / 3 * b**2) / freedom)
    assert rebuilt.spread is not None
    assert rebuilt.spread.freedom == pytest.approx(freedom)
    assert rebuilt.spread.deviation == pytest.approx(deviation)
    reach = stats.t.ppf(0.99, freedom) * deviation * math.sqrt(4 / 3)
    assert rebuilt.bound_ms(0.99) == pytest.approx(math.exp(reach))


def test_usual__is_the_median_network_and_unknown_of_few() -> None:
    """Worked by hand: pairs with logarithms 0 and a, of variance a^2 / 2; the median wins."""
    pairs = [built(ms, ms * math.exp(a)).builds for ms, a in ((1.0, 0.01), (2.0, 0.02), (3.0, 0.5))]
    usual = Spread.usual([*pairs, built(7.0).builds])
    assert usual is not None
    assert usual.freedom == pytest.approx(3 * math.log(2) ** 2)
    assert usual.deviation == pytest.approx(math.sqrt(0.02**2 / 2 / 0.45494), rel=1e-4)
    assert Spread.usual([*pairs[:2], built(7.0).builds]) is None


@pytest.mark.parametrize(
    ("unlike", "shared"),
    [(0.0, 0.0), (0.35, 0.0), (0.0, 0.5), (0.25, 0.25)],
    ids=["alike", "unlike", "in common", "both"],
)
def test_bound__beside_others_holds_fresh_builds_as_often_as_it_says(
    unlike: float, shared: float
) -> None:
    """Five networks, three builds each, as far as the assumptions go: 1 % over at the most.

    `unlike` is the standard deviation of the logarithm of a network's spread, `shared` the share of
    the variance that one round does to all networks. The chance of a fresh build is exact.
    """
    generator = np.random.default_rng(1)
    over, reaches, alone = [], [], []
    for _ in range(200):
        spreads = 0.01 * np.exp(generator.normal(0, unlike, (5, 1)))
        in_round = generator.normal(0, math.sqrt(shared), (1, 3))
        noise = in_round + generator.normal(0, math.sqrt(1 - shared), (5, 3))
        networks = [built(*row, width=1e-6).builds for row in np.exp(spreads * noise).tolist()]
        for own, builds in enumerate(networks):
            others = Spread.usual(networks[:own] + networks[own + 1 :])
            bound = math.log(Rebuilt(builds, others).bound_ms())
            over.append(stats.norm.sf(bound / spreads[own, 0]))
            reaches.append(bound / spreads[own, 0])
            alone.append(math.log(Rebuilt(builds).bound_ms()) / spreads[own, 0])
    assert np.mean(over) < 0.01
    assert np.median(reaches) < 0.7 * np.median(alone)


def test_decided__needs_builds_enough_and_stops_where_more_say_nothing() -> None:
    near = built(0.99, 1.0, 1.01)
    assert not built(0.5, 0.5).decided(Budget(1.0))  # too few of them
    assert not built(0.5).decided(Budget(1.0))
    assert near.decided(Budget(2.0))  # surely keeps it
    assert near.decided(Budget(0.9))  # breaks it on the mean
    assert near.decided(Budget(1.02))  # no more builds would make it sure
    assert not near.decided(Budget(1.03))  # they may
    assert built(*(0.99, 1.0, 1.01) * 2).decided(Budget(1.03))  # no more are allowed
    assert not near.keeps(Budget(1.03))


def test_chance__is_about_the_share_of_networks_that_are_found_to_keep_the_budget() -> None:
    """What is known is one build; the six to come decide, where the spread is well known."""
    generator = np.random.default_rng(2)
    spread = Spread(0.01, 1e6)
    for room, low, high in ((0.01, 0.03, 0.09), (0.025, 0.4, 0.6), (0.05, 0.95, 1.0)):
        latency = built(math.exp(-room)).builds[0]
        ms = -room + generator.normal(0, 0.01, 4000)  # as one build tells it
        final = ms + generator.normal(0, 0.01 / math.sqrt(MOST_BUILDS), 4000)
        found = np.mean(final <= -spread.reach(0.99, MOST_BUILDS))
        chance = spread.chance_of(latency, Budget(1.0))
        assert low < chance < high
        assert chance == pytest.approx(found, abs=0.03)


def test_chance__of_a_prediction_is_seen_with_its_interval() -> None:
    measured = built(0.99, width=0.05).builds[0]
    predicted = dataclasses.replace(measured, source="predicted")
    spread = Spread(0.01, 20)
    assert spread.chance_of(measured, Budget(1.0)) < LEAST_CHANCE
    assert spread.chance_of(predicted, Budget(1.0)) > LEAST_CHANCE


def test_builds__of_two_environments_are_refused() -> None:
    other = dataclasses.replace(ENVIRONMENT, threads=2)
    one = built(1.0).builds[0]
    with pytest.raises(InputError, match="2 environments"):
        Rebuilt((one, dataclasses.replace(one, environment=other)))
    with pytest.raises(InputError, match="0 builds"):
        Rebuilt(())
