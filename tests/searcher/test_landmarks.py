from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nas.searcher.landmarks import spread
from nas.searcher.ranking import pairs_within

_latencies = st.lists(st.floats(0.01, 100), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(_latencies, st.integers(1, 45))
@example([0.010000000000000002, 0.01], 2)  # of equal logarithms
@example([1.0, 99.99999999999999, 100.0], 2)
def test_spread__is_distinct_ordered_and_has_both_ends(latencies, count):
    chosen = spread(latencies, count)
    assert len(set(chosen)) == len(chosen) == min(count, len(latencies))
    times = [latencies[index] for index in chosen]
    assert times == sorted(times)
    if count >= 2:
        ends = (min(latencies), max(latencies))
        assert (times[0], times[-1]) == pytest.approx(ends, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(_latencies, st.integers(1, 20), st.data())
def test_spread__keeps_what_it_must(latencies, count, data):
    keep = data.draw(st.lists(st.integers(0, len(latencies) - 1), unique=True))
    chosen = spread(latencies, count, keep)
    assert set(keep) <= set(chosen)
    assert len(chosen) == max(min(count, len(latencies)), len(keep))


@pytest.mark.parametrize("count", [8, 12, 24])
def test_spread__has_as_many_pairs_of_equal_latency_as_threes_have(count):
    latencies = np.geomspace(0.1, 1, 200)
    chosen = spread(latencies, count)
    assert pairs_within(latencies[chosen]).sum() // 2 >= count - 2
    thirds = np.histogram(np.log(latencies[chosen]), bins=3)[0]
    assert thirds.min() >= 2


def test_spread__of_nothing_is_nothing():
    assert spread([], 8) == []
