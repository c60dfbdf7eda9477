from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nas.results.fronts import (
    FrontDifference,
    Side,
    difference_figure,
    difference_lines,
    difference_table,
)
from nas.searcher.result import StudyResult
from nas.searcher.score import Score
from nas.units import Budget

Row = tuple[str, float, float | None]

OLD: list[Row] = [
    ("a", 0.2, 0.3),
    ("b", 0.4, 0.5),
    ("c", 0.6, 0.4),
    ("d", 0.9, 0.7),
    ("e", 2, None),
]
NEW: list[Row] = [
    ("a", 2.0, 0.3),
    ("b", 9.0, 0.5),
    ("c", 3.0, 0.4),
    ("f", 4.0, 0.6),
    ("d", 20, None),
]


def _side(
    name: str,
    rows: list[Row],
    budget: float,
    *,
    hardware: str = "cpu",
    source: str = "measured",
    precision: str = "fp32",
) -> Side:
    table = pd.DataFrame(rows, columns=["architecture", "latency_ms", "map50_95"])
    table["map50_95"] = table["map50_95"].astype(float)
    table["trial"] = np.arange(len(rows))
    table["precision"], table["artifact"] = precision, "engine"
    table["latency_source"] = source
    for side, factor in (("low", 0.9), ("high", 1.1)):
        table[f"latency_{side}_ms"] = table["latency_ms"] * factor
        table[f"map50_95_{side}"] = table["map50_95"] * factor
    return Side(StudyResult(name, Budget(budget), Score(), table), hardware, "engine-maker")


@pytest.fixture
def difference() -> FrontDifference:
    return FrontDifference.of(
        _side("here", OLD, 1.0), _side("there", NEW, 10.0, hardware="l4", source="estimated")
    )


def test_of__says_of_every_member_on_which_front_it_is(difference: FrontDifference) -> None:
    fronts = dict(zip(difference.table["architecture"], difference.table["front"], strict=True))
    assert fronts == {
        "a": "both",
        "b": "only old",
        "c": "only new",
        "d": "only old",
        "f": "only new",
    }
    standing = difference.table.set_index("architecture")
    assert standing.loc["b", "standing_new"] == "dominated"
    assert standing.loc["d", "standing_new"] == "over 10ms"
    assert standing.loc["c", "standing_old"] == "dominated"
    assert pd.isna(standing.loc["f", "standing_old"])


def test_of__ranks_what_both_know(difference: FrontDifference) -> None:
    ranks = difference.table.set_index("architecture")[["rank_old", "rank_new"]]
    assert ranks.loc["b"].tolist() == [2, 3]
    assert ranks.loc["c"].tolist() == [3, 2]
    assert ranks.loc["f"].isna().all()


def test_tau__counts_pairs_in_one_order(difference: FrontDifference) -> None:
    assert difference.tau is not None
    assert difference.tau.value == pytest.approx(2 / 3)  # a, b, c, d: one pair of six is swapped
    lines = " ".join(difference_lines(difference))
    assert "in 83% of cases" in lines
    few = FrontDifference.of(_side("x", OLD[:3], 1.0), _side("y", NEW[:3], 10.0, hardware="l4"))
    assert few.tau is None


def test_difference_lines__say_who_stays_and_what_is_unsure(difference: FrontDifference) -> None:
    lines = " ".join(difference_lines(difference))
    assert "1 of the 3 front members of here stay" in lines
    assert "1 over 10ms" in lines
    assert "1 dominated" in lines
    assert "Of the 3 members of there, 2 are new" in lines
    assert "are estimated" in lines
    assert difference.new.unsure == ["estimated"]
    assert difference.old.unsure == []
    same = FrontDifference.of(_side("x", OLD, 1.0), _side("y", OLD, 0.5))
    assert "estimated" not in " ".join(difference_lines(same))


def test_of__no_precision_in_common_compares_architectures() -> None:
    left = _side("x", OLD, 1.0)
    right = _side("y", NEW, 10.0, precision="fp16")
    difference = FrontDifference.of(left, right)
    assert difference.count("both") == 1
    assert not difference.same_device
    row = difference.table.query("architecture == 'a'").iloc[0]
    assert (row["precision_old"], row["precision_new"]) == ("fp32", "fp16")
    assert "fp32 engine there and on fp16 engine here" in " ".join(difference_lines(difference))


def test_difference_table__holds_sources_and_both_latencies(difference: FrontDifference) -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(difference_table(difference))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("0.400 measured", "9.000 estimated", "2 -> 3 (-1)", "over 10ms", "not looked at"):
        assert words in text


def test_difference_figure__two_devices_share_no_milliseconds(difference: FrontDifference) -> None:
    figure = difference_figure(difference)
    assert "latency / own budget" in figure.layout.xaxis.title.text
    assert "estimated" in figure.layout.xaxis.title.text
    drawn = {trace.name: trace for trace in figure.data if trace.name}
    (old,) = (trace for name, trace in drawn.items() if name.startswith("here (3)"))
    (new,) = (trace for name, trace in drawn.items() if name.startswith("there (3)"))
    assert list(old.x) == pytest.approx([0.2, 0.4, 0.9])
    assert list(new.x) == pytest.approx([0.2, 0.3, 0.4])
    assert set(drawn["both budgets"].x) == {1.0}


def test_difference_figure__one_device_is_drawn_in_milliseconds() -> None:
    figure = difference_figure(FrontDifference.of(_side("x", OLD, 1.0), _side("y", OLD, 0.5)))
    assert figure.layout.xaxis.title.text.startswith("latency in ms")
    budgets = {trace.x[0] for trace in figure.data if (trace.name or "").startswith("budget")}
    assert budgets == {1.0, 0.5}
    assert "0.5" in figure.layout.xaxis.ticktext  # plotly writes 5
    ends = [10**end for end in figure.layout.xaxis.range]
    assert ends[0] < min(one[1] * 0.9 for one in OLD)
    assert ends[1] > 1.0
    lines = [t for t in figure.data if (t.name or "").startswith("budget")]
    assert len({line.line.color for line in lines}) == 2  # else nobody knows whose is whose
    assert {line.name for line in lines} == {"budget 1ms of x", "budget 0.5ms of y"}


_ROWS = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.tuples(st.floats(0.1, 10), st.floats(0, 1) | st.none()),
    min_size=1,
).map(lambda found: [(name, *values) for name, values in found.items()])


@settings(deadline=None, max_examples=20)
@given(_ROWS, _ROWS)
def test_of__counts_add_up_to_the_fronts(left: list[Row], right: list[Row]) -> None:
    old, new = _side("x", left, 5.0), _side("y", right, 5.0)
    difference = FrontDifference.of(old, new)
    both = difference.count("both")
    assert both + difference.count("only old") == len(old.result.front)
    assert both + difference.count("only new") == len(new.result.front)
    assert set(difference.common["architecture"]) <= {row[0] for row in left}


@settings(deadline=None, max_examples=20)
@given(_ROWS)
def test_of__a_study_against_itself_has_no_difference(rows: list[Row]) -> None:
    difference = FrontDifference.of(_side("x", rows, 5.0), _side("x", rows, 5.0))
    assert difference.count("both") == len(difference.table)
    assert (difference.table["rank_old"] == difference.table["rank_new"]).all()
    assert difference.same_device
