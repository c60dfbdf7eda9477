from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.latency.blocks import Turn, counting, interval, percentiles, reasons, throttles, too_few
from nas.latency.throttling import Sight

SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 20))


def turn(*samples: list[float], reason: str | None = None, crowded: bool = False) -> Turn:
    return Turn([np.array(one, float) for one in samples], 1.0, crowded, Sight(reason))


def turns(rng: np.random.Generator, blocks: int, samples: int) -> list[Turn]:
    return [turn(*rng.lognormal(0, 0.5, (2, samples)).tolist()) for _ in range(blocks)]


@given(SHAPES, st.floats(0, 100), st.integers(0, 2**20))
def test_interval__estimate_is_the_ratio_of_percentiles(
    shape: tuple[int, int], percentile: float, seed: int
) -> None:
    made = turns(np.random.default_rng(seed), *shape)
    pooled = [np.concatenate([one.samples[index] for one in made]) for index in (0, 1)]
    lows = [percentiles(one, [percentile])[0] for one in pooled]
    middle, low, high = interval(made, percentile, seed)
    assert middle == pytest.approx(lows[0] / lows[1])
    assert low <= middle <= high


@given(SHAPES, st.sampled_from([2.0, 50.0]), st.integers(0, 2**20))
def test_interval__is_that_of_a_plain_bootstrap(
    shape: tuple[int, int], percentile: float, seed: int
) -> None:
    """The same draws, judged one by one."""
    made = turns(np.random.default_rng(seed), *shape)
    blocks = shape[0]
    drawn = np.random.default_rng(seed).multinomial(blocks, [1 / blocks] * blocks, 400)
    ratios = []
    for counts in drawn:
        again = [one for one, count in zip(made, counts, strict=True) for _ in range(count)]
        pooled = [np.concatenate([one.samples[index] for one in again]) for index in (0, 1)]
        c, r = (percentiles(one, [percentile])[0] for one in pooled)
        ratios.append(c / r)
    middle, low, high = interval(made, percentile, seed)
    expected = np.percentile(ratios, [2.5, 97.5])
    assert low == pytest.approx(min(expected[0], middle))
    assert high == pytest.approx(max(expected[1], middle))


def test_interval__blocks_that_disagree_make_it_wide() -> None:
    """Its runs agree within each block, so that a bootstrap over runs would be sure of itself."""
    rng = np.random.default_rng(0)
    alike = [turn([1.0] * 20, [1.0] * 20) for _ in range(10)]
    apart = [turn([level] * 20, [1.0] * 20) for level in rng.uniform(1, 2, 10)]
    widths = [high - low for _, low, high in (interval(one, 50, 0) for one in (alike, apart))]
    assert widths[0] == 0
    assert widths[1] > 0.1


def test_reasons__each_kind_is_named() -> None:
    sound = [turn([1, 1], [1, 1]) for _ in range(9)]
    damaged = [
        turn([1, -1], [1, 1]),
        turn([1, 1], [1, 2000]),
        turn([1, 1], [1, 1], crowded=True),
        turn([1, 1], [1, 1], reason="power cap"),
    ]
    assert reasons([*damaged, *sound]) == [
        "the clock leapt",
        "the clock leapt",
        "another thread was busy in the process",
        "power cap",
        *[None] * 9,
    ]
    assert counting([*damaged, *sound]) == sound
    assert counting([*damaged, *sound], though_throttled=True) == [damaged[3], *sound]


@pytest.mark.parametrize(("hot", "expected"), [(3, False), (4, True)])
def test_throttles__above_30_percent(hot: int, expected: bool) -> None:
    made = [turn([1], reason="power cap" if index < hot else None) for index in range(10)]
    assert throttles(made) == expected


def test_too_few__names_the_commonest_fault() -> None:
    crowded = [turn([1], crowded=True)] * 3
    leapt = [turn([-1])] * 2
    assert "in 1 of 6 blocks" in too_few([*crowded, *leapt, turn([1])]).message
    assert "alone in its process" in too_few([*crowded, *leapt]).message
    assert "went backwards" in too_few([*crowded, *leapt, *leapt]).message


def test_percentiles__are_samples() -> None:
    assert percentiles(np.array([4.0, 1.0, 3.0, 2.0]), [0, 50, 99]) == [1, 2, 4]
