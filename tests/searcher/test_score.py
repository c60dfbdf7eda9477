from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.searcher.score import Score

MAP = st.floats(0, 1)
MS = st.floats(0.001, 1000)


@given(MAP, MS)
def test_score__is_the_accuracy_by_default(accuracy: float, latency_ms: float) -> None:
    assert Score()(accuracy, latency_ms) == accuracy


@given(MAP, MS, st.floats(0.001, 10), st.floats(0, 10))
def test_score__falls_with_latency_and_rises_with_accuracy(
    accuracy: float, latency_ms: float, alpha: float, beta: float
) -> None:
    score = Score(alpha, beta)
    assert score(accuracy, latency_ms * 2) <= score(accuracy, latency_ms)
    assert score(accuracy + 0.1, latency_ms) > score(accuracy, latency_ms)


def test_score__says_its_formula() -> None:
    assert str(Score()) == "mAP50-95"
    assert str(Score(beta=0.3)) == "mAP50-95 - 0.3 x latency"
    assert str(Score(2, 0.5)) == "2 x mAP50-95 - 0.5 x latency"


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0, 0), (-1, 0), (1, -0.1), (float("nan"), 0), (1, float("inf"))]
)
def test_score__refuses_weights_that_order_nothing(alpha: float, beta: float) -> None:
    with pytest.raises(InputError) as error:
        Score(alpha, beta)
    assert error.value.remedy
