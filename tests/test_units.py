from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import BudgetError
from nas.units import Budget, format_ms


@pytest.mark.parametrize(
    ("text", "latency_ms"), [("10ms", 10.0), ("0.4ms", 0.4), ("400us", 0.4), (".5ms", 0.5)]
)
def test_budget__reads(text: str, latency_ms: float) -> None:
    assert Budget.parse(text).latency_ms == pytest.approx(latency_ms)


@pytest.mark.parametrize(
    "text", ["10", "-3ms", "10 s", "10s", "", "ms", "1e999ms", "0ms", "nanms", "10 ms", "11000ms"]
)
def test_budget__refuses_and_shows_the_value(text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert caught.value.remedy
    assert text in str(caught.value) or "must lie above 0" in str(caught.value)


@given(st.floats(1e-6, 10_000))
def test_budget__round_trips(latency_ms: float) -> None:
    assert Budget.parse(format_ms(latency_ms)).latency_ms == latency_ms


def test_budget__admits_equality() -> None:
    assert Budget(1.0).admits(1.0)
    assert not Budget(1.0).admits(1.0000001)
