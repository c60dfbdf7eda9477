from __future__ import annotations

import pandas as pd
import pytest

from nas.errors import StudyError
from nas.searcher.result import StudyResult
from nas.searcher.score import Score
from nas.units import Budget


def _result(rows: list[tuple[str, float, float | None]], score: Score | None = None) -> StudyResult:
    """Make a study from (architecture, latency, mAP), one trial each."""
    table = pd.DataFrame(rows, columns=["architecture", "latency_ms", "map50_95"])
    table["trial"] = range(len(rows))
    table["precision"] = "fp32"
    return StudyResult("s", Budget(1.0), score or Score(), table)


def test_front__keeps_the_budget_and_holds_the_best_first() -> None:
    result = _result([("a", 0.5, 0.3), ("b", 0.9, 0.5), ("c", 2.0, 0.9), ("d", 0.8, 0.2)])
    assert result.front["architecture"].tolist() == ["b", "a"]
    assert result.row()["architecture"] == "b"


def test_front__another_score_orders_it_differently() -> None:
    result = _result([("a", 0.5, 0.3), ("b", 0.9, 0.5)], Score(beta=1.0))
    assert result.front["architecture"].tolist() == ["a", "b"]


def test_scored__counts_a_repeated_candidate_once() -> None:
    result = _result([("a", 0.5, 0.3), ("a", 0.5, 0.3), ("b", 0.6, None)])
    assert result.scored["trial"].tolist() == [0]


def test_hypervolume__is_measured_from_the_budget() -> None:
    assert _result([("a", 0.5, 0.4)]).hypervolume == pytest.approx(0.4 * 0.5)


def test_row__nothing_under_the_budget_is_an_error() -> None:
    with pytest.raises(StudyError, match=r"No candidate .* 1ms"):
        _result([("a", 2.0, 0.4)]).row()


def test_row__a_trial_without_accuracy_lists_those_that_have_one() -> None:
    with pytest.raises(StudyError, match="Trial 1 ") as caught:
        _result([("a", 0.5, 0.4), ("b", 2.0, None)]).row(1)
    assert "0" in caught.value.remedy
