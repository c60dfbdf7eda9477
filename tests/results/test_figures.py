from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from nas.errors import StorageError
from nas.results.figures import front_figure, write_figure
from nas.searcher.result import StudyResult
from nas.searcher.score import Score
from nas.units import Budget


@pytest.fixture
def result() -> StudyResult:
    table = pd.DataFrame(
        {
            "trial": [0, 1, 2],
            "architecture": ["a", "b", "c"],
            "precision": "fp32",
            "state": ["complete", "complete", "infeasible"],
            "latency_ms": [0.5, 0.9, 2.0],
            "latency_low_ms": [0.45, 0.85, 1.9],
            "latency_high_ms": [0.55, 0.95, 2.1],
            "latency_source": ["measured", "cached", "measured"],
            "map50_95": [0.3, 0.5, None],
            "map50_95_low": [0.28, 0.47, None],
            "map50_95_high": [0.33, 0.52, None],
            "map50": [0.4, 0.6, None],
        }
    )
    return StudyResult("s", Budget(1.0), Score(), table)


def test_front_figure__draws_intervals_budget_and_what_was_never_scored(
    result: StudyResult,
) -> None:
    figure = front_figure(result, winner=1)
    names = [trace.name for trace in figure.data]
    assert names == [
        "over budget or another bound, never scored (1)",
        "scored under budget (2)",
        None,
        "front (2)",
        "winner: trial 1",
        "budget 1ms",
    ]
    bars = figure.data[1].error_x
    assert list(bars.array) == pytest.approx([0.05, 0.05])
    assert list(figure.data[1].error_y.array) == pytest.approx([0.03, 0.02])
    assert set(figure.data[-1].x) == {1.0}


def test_front_figure__a_smaller_budget_hides_nothing_that_was_scored(result: StudyResult) -> None:
    under = dataclasses.replace(result, budget=Budget(0.6))
    drawn = {trace.name: trace for trace in front_figure(under).data}
    assert list(drawn["scored, but over this budget (1)"].x) == [0.9]
    assert max(drawn["budget 0.6ms"].y) == pytest.approx(0.52)
    assert list(drawn["scored under budget (1)"].x) == [0.5]


def test_front_figure__the_legend_covers_no_candidate(result: StudyResult) -> None:
    legend = front_figure(result).layout.legend
    assert legend.y < 0
    assert legend.yanchor == "top"


def test_front_figure__the_source_is_one_hover_away(result: StudyResult) -> None:
    points = front_figure(result).data[-2]
    assert {row[1] for row in points.customdata} == {"measured", "cached"}
    assert "customdata[1]" in points.hovertemplate


def test_write_figure__needs_no_network(result: StudyResult, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "front.html"
    write_figure(front_figure(result), path)
    assert "cdn.plot.ly" not in path.read_text().split("</script>")[0][:2000]
    assert path.stat().st_size > 1_000_000  # plotly itself is inside


def test_write_figure__says_where_it_failed(result: StudyResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"front\.html"):
        write_figure(front_figure(result), tmp_path / "file" / "front.html")
