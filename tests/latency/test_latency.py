from __future__ import annotations

import json

import pytest
from environments import ENVIRONMENT
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError, UnknownNameError
from nas.latency.latency import Latency

POSITIVE = st.floats(1e-6, 1e6)


@given(st.lists(POSITIVE, min_size=3, max_size=3).map(sorted), st.sampled_from(["table", "cached"]))
def test_latency__survives_json(values: list[float], source: str) -> None:
    low, ms, high = values
    latency = Latency(ms, low, high, source, ENVIRONMENT)
    assert Latency.from_dict(json.loads(json.dumps(latency.as_dict()))) == latency


@pytest.mark.parametrize("values", [(0, 0, 0), (1, 2, 3), (3, 1, 2), (1, 1, float("inf"))])
def test_latency__impossible_interval_is_an_error(values: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="low_ms <= ms <= high_ms"):
        Latency(*values, "measured", ENVIRONMENT)


def test_latency__unknown_source_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="guessed"):
        Latency(1, 1, 1, "guessed", ENVIRONMENT)
