"""Two fronts beside each other: what a candidate costs here and there, and which members stay.

A study and the one that it was re-targeted from, or any two that searched the same networks. A
candidate of both is one architecture in one precision; where the two have no precision in common,
it is one architecture.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich import box
from rich.table import Table

from nas.results.figures import TICKS
from nas.results.latency import levels
from nas.searcher.database import Database
from nas.searcher.ranking import Statistic, kendall_tau
from nas.searcher.result import StudyResult

__all__ = ["FrontDifference", "Side", "difference_figure", "difference_lines", "difference_table"]

_SURE = ("measured", "cached")
_COLORS = {"old": "#bf8700", "new": "#1f6feb"}
_GREY, _RED = "#9aa5b1", "#cf222e"
_LEAST_COMMON = 4  # of which `LEAST_PAIRS` pairs are made


@dataclass(frozen=True)
class Side:
    """A study, and what it was searched for.

    Attributes:
        result: the study.
        hardware: name of the device.
        runtime: of the engines that its latencies are about.
    """

    result: StudyResult
    hardware: str
    runtime: str

    @property
    def name(self) -> str:
        """The study."""
        return self.result.study

    @cached_property
    def candidates(self) -> pd.DataFrame:
        """The distinct candidates that have a latency; `standing` says what became of each."""
        table = self.result.evaluations
        table = table[table["latency_ms"].notna()].copy()
        keys = ["architecture", "precision"]
        table["scored"] = table["map50_95"].notna()
        table = table.sort_values(["scored", "trial"], ascending=[False, True])
        table = table.drop_duplicates(keys).drop(columns="scored")
        front = set(self.result.front[keys].itertuples(index=False, name=None))
        table["standing"] = [self._standing(row, front) for row in table.to_dict("records")]
        return table.reset_index(drop=True)

    @property
    def sources(self) -> list[str]:
        """Where its latencies come from."""
        return sorted(set(self.candidates["latency_source"].dropna()))

    @property
    def unsure(self) -> list[str]:
        """Of these, what is no measurement."""
        return [one for one in self.sources if one not in _SURE]

    @property
    def artifacts(self) -> list[str]:
        """What its accuracies were scored on, such as `fp32 engine`."""
        known = self.candidates[self.candidates["map50_95"].notna()]
        pairs = zip(known["precision"], known["artifact"], strict=True)
        return sorted({f"{precision} {artifact}" for precision, artifact in pairs})

    @property
    def target(self) -> str:
        """Device, runtime and budget."""
        return f"{self.hardware}, {self.runtime}, {self.result.budget}"

    def _standing(self, row: Mapping[Hashable, Any], front: set[tuple[Any, ...]]) -> str:
        if (row["architecture"], row["precision"]) in front:
            return "front"
        if not self.result.budget.admits(float(row["latency_ms"])):
            return f"over {self.result.budget}"
        return "dominated" if pd.notna(row["map50_95"]) else "not scored"


def side_of(result: StudyResult, database: Database) -> Side:
    """Read what a stored study was searched for."""
    run = database.latest_run(result.study)
    return Side(result, run.hardware if run else "", run.runtime if run else "")


@dataclass(frozen=True, eq=False)
class FrontDifference:
    """What changes from one front to another.

    Attributes:
        old: the study that is compared with.
        new: the study that is looked at.
        common: the candidates that have a latency in both; every column twice, `_old` and `_new`.
        table: the members of either front by ascending latency in the new study, likewise. `front`
            says of which: `both`, `only old` or `only new`. `rank_old` and `rank_new` are the
            positions by latency among the rows that have both; NaN for the others.
    """

    old: Side
    new: Side
    common: pd.DataFrame
    table: pd.DataFrame

    @classmethod
    def of(cls, old: Side, new: Side) -> FrontDifference:
        """Compare two studies."""
        left, right = old.candidates, new.candidates
        keys = ["architecture", "precision"]
        if set(left["precision"]).isdisjoint(right["precision"]):
            keys = ["architecture"]
            left, right = _one_each(left), _one_each(right)
        both = left.merge(right, on=keys, how="outer", suffixes=("_old", "_new"))
        if "precision" in both:
            both["precision_old"] = both["precision_new"] = both["precision"]
        known = both["latency_ms_old"].notna() & both["latency_ms_new"].notna()
        was, stays = both["standing_old"] == "front", both["standing_new"] == "front"
        both["front"] = "neither"
        both.loc[was & stays, "front"] = "both"
        both.loc[was & ~stays, "front"] = "only old"
        both.loc[~was & stays, "front"] = "only new"
        table = both[was | stays].sort_values(["latency_ms_new", "latency_ms_old"]).copy()
        for side in ("old", "new"):
            table[f"rank_{side}"] = table[f"latency_ms_{side}"].where(known).rank()
        return cls(old, new, both[known].reset_index(drop=True), table.reset_index(drop=True))

    @property
    def same_device(self) -> bool:
        """Whether the latencies of both are of one device, runtime and precision."""
        return (self.old.hardware, self.old.runtime) == (
            self.new.hardware,
            self.new.runtime,
        ) and "precision" in self.common

    @cached_property
    def tau(self) -> Statistic | None:
        """Kendall's tau-b of the latencies of the common candidates; None of fewer than 4."""
        if len(self.common) < _LEAST_COMMON:
            return None
        return kendall_tau(self.common["latency_ms_old"], self.common["latency_ms_new"])

    def count(self, front: str) -> int:
        """How many members are on `both` fronts, `only old` or `only new`."""
        return int((self.table["front"] == front).sum())


def difference_table(difference: FrontDifference) -> Table:
    """Draw the members of both fronts: latency and mAP there and here, and what became of each."""
    old, new = difference.old, difference.new
    drawn = Table(
        title=f"{new.name} ({new.target}) against {old.name} ({old.target})",
        box=box.SIMPLE_HEAVY,
        title_justify="left",
        show_edge=False,
        caption=f"Trials, latencies in ms and mAP50-95: {old.name}, then {new.name}.",
        caption_justify="left",
    )
    for column in ("network", "on the front of", "trial", "old ms", "new ms", "rank by ms"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for column in ("old mAP", "new mAP", "in the other"):
        drawn.add_column(column, justify="right", no_wrap=True)
    styles = {"both": "bold", "only old": "dim", "only new": "green"}
    for row in difference.table.to_dict("records"):
        drawn.add_row(
            str(row["architecture"])[:8],
            str(row["front"]),
            f"{_trial(row['trial_old'])}, {_trial(row['trial_new'])}",
            _latency(row["latency_ms_old"], row["latency_source_old"]),
            _latency(row["latency_ms_new"], row["latency_source_new"]),
            _ranks(row["rank_old"], row["rank_new"]),
            _accuracy(row["map50_95_old"], row["precision_old"]),
            _accuracy(row["map50_95_new"], row["precision_new"]),
            _elsewhere(row),
            style=styles[row["front"]],
        )
    return drawn


def difference_lines(difference: FrontDifference) -> Iterator[str]:
    """Say in plain sentences which members stay, how alike the devices rank, and what is unsure."""
    old, new = difference.old, difference.new
    stay, left = difference.count("both"), difference.count("only old")
    line = f"{stay} of the {stay + left} front members of {old.name} stay"
    if left:
        gone = difference.table[difference.table["front"] == "only old"]
        reasons = gone["standing_new"].fillna("not looked at").value_counts()
        line += "; " + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    new_ones = difference.count("only new")
    are = "is" if new_ones == 1 else "are"
    yield f"{line}. Of the {stay + new_ones} members of {new.name}, {new_ones} {are} new."
    if difference.tau is not None and not difference.same_device:
        yield _order_line(difference, difference.tau)
    if new.unsure:
        yield (
            f"{'Some l' if len(new.unsure) < len(new.sources) else 'L'}atencies of {new.name} are "
            f"{', '.join(new.unsure)}, so this is no more than an expectation."
        )
    if old.artifacts != new.artifacts:
        yield (
            f"mAP was scored on {', '.join(old.artifacts) or 'nothing'} there and on "
            f"{', '.join(new.artifacts) or 'nothing'} here: differences hold that, too."
        )


def difference_figure(difference: FrontDifference) -> go.Figure:
    """Draw both fronts in one picture.

    On one device over ms. Milliseconds of two devices do not belong on one axis, and two axes could
    be shifted at will: there each latency is drawn as a share of its own budget, and the budget of
    both is 1. A grey line joins what a candidate is in one study to what it is in the other.
    """
    figure = go.Figure()
    figure.add_trace(_joins(difference))
    for side, study in (("old", difference.old), ("new", difference.new)):
        scale = 1.0 if difference.same_device else study.result.budget.latency_ms
        for trace in _front_traces(study, side, scale):
            figure.add_trace(trace)
    for budget in _budgets(difference):
        figure.add_trace(budget)
    what = "latency in ms" if difference.same_device else "latency / own budget"
    sources = sorted({*difference.old.sources, *difference.new.sources})
    figure.update_xaxes(type="log", title=f"{what}, {', '.join(sources)}; log scale")
    figure.update_xaxes(
        range=_padded(figure), tickvals=TICKS, ticktext=[f"{tick:g}" for tick in TICKS]
    )
    figure.update_yaxes(
        title="mAP50-95 on validation, inherited weights (bars: 95 % interval)",
        exponentformat="none",
    )
    figure.update_layout(
        title=f"{difference.new.name} against {difference.old.name}",
        template="plotly_white",
        legend={"orientation": "h", "x": 0, "y": -0.18, "yanchor": "top"},
        width=960,
        height=620,
    )
    return figure


def _one_each(table: pd.DataFrame) -> pd.DataFrame:
    """Keep one precision of each architecture: that on the front, or the most accurate."""
    order = table.assign(_on=table["standing"] == "front")
    order = order.sort_values(["_on", "map50_95"], ascending=[False, False], na_position="last")
    return order.drop_duplicates("architecture").drop(columns="_on")


def _order_line(difference: FrontDifference, tau: Statistic) -> str:
    old, new = difference.old, difference.new
    share = (1 + tau.value) / 2
    return (
        f"Of any two of the {len(difference.common)} candidates that both know, the faster on "
        f"{old.hardware} ({old.runtime}) is the faster on {new.hardware} ({new.runtime}) in "
        f"{share:.0%} of cases: Kendall tau {tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}]."
    )


def _joins(difference: FrontDifference) -> go.Scatter:
    xs: list[float | None] = []
    ys: list[float | None] = []
    budgets = {
        "old": difference.old.result.budget.latency_ms,
        "new": difference.new.result.budget.latency_ms,
    }
    for row in difference.table.to_dict("records"):
        if pd.isna(row["map50_95_old"]) or pd.isna(row["map50_95_new"]):
            continue
        for side in ("old", "new"):
            scale = 1.0 if difference.same_device else budgets[side]
            xs.append(row[f"latency_ms_{side}"] / scale)
            ys.append(row[f"map50_95_{side}"])
        xs.append(None)
        ys.append(None)
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        name="the same candidate",
        line={"color": _GREY, "width": 1},
        hoverinfo="skip",
    )


def _budgets(difference: FrontDifference) -> Iterator[go.Scatter]:
    """Draw a line at each budget; at 1 where latencies are shares of them."""
    studies = (difference.old, difference.new)
    lines = {1.0: ("both budgets", _RED)}
    budgets = {one.result.budget.latency_ms for one in studies}
    if difference.same_device and len(budgets) == 1:
        lines = {budgets.pop(): (f"budget {studies[0].result.budget}", _RED)}
    elif difference.same_device:
        lines = {
            one.result.budget.latency_ms: (f"budget {one.result.budget} of {one.name}", color)
            for one, color in zip(studies, _COLORS.values(), strict=True)
        }
    fronts = pd.concat([one.result.front for one in studies])
    for x, (name, color) in lines.items():
        yield go.Scatter(
            x=[x] * 2,
            y=[fronts["map50_95_low"].min(), fronts["map50_95_high"].max()],
            mode="lines",
            name=name,
            line={"color": color, "dash": "dash"},
            hoverinfo="skip",
        )


def _front_traces(study: Side, side: str, scale: float) -> Iterator[go.Scatter]:
    front = study.result.front.sort_values("latency_ms")
    color, x = _COLORS[side], front["latency_ms"] / scale
    yield go.Scatter(
        x=x,
        y=front["map50_95"],
        mode="lines",
        line={"shape": "hv", "color": color, "width": 2},
        showlegend=False,
        hoverinfo="skip",
    )
    held = levels(front["latency_source"])
    yield go.Scatter(
        x=x,
        y=front["map50_95"],
        error_x=_bars(x, front["latency_low_ms"] / scale, front["latency_high_ms"] / scale),
        error_y=_bars(front["map50_95"], front["map50_95_low"], front["map50_95_high"]),
        mode="markers",
        name=f"{study.name} ({len(front)}): {study.target}, bars {held}",
        marker={"color": color, "size": 9, "symbol": "circle" if side == "new" else "diamond"},
        customdata=front[["trial", "latency_ms", "latency_source", "precision"]],
        hovertemplate=(
            "trial %{customdata[0]} (%{customdata[3]})<br>mAP50-95 %{y:.3f}<br>"
            "%{customdata[1]:.3f} ms, %{customdata[2]}<extra>" + study.name + "</extra>"
        ),
    )


def _padded(figure: go.Figure) -> list[float]:
    """Return the ends of a log axis with room at both sides: a budget is the last thing on it."""
    drawn = [x for one in figure.data for x in one.x if x is not None]
    for one in figure.data:
        if one.error_x.array is not None:
            drawn += [x + more for x, more in zip(one.x, one.error_x.array, strict=True)]
            drawn += [x - less for x, less in zip(one.x, one.error_x.arrayminus, strict=True)]
    low, high = math.log10(min(drawn)), math.log10(max(drawn))
    margin = max(0.05 * (high - low), 0.01)
    return [low - margin, high + margin]


def _bars(value: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": high - value,
        "arrayminus": value - low,
        "thickness": 1,
        "width": 0,
    }


def _trial(number: float) -> str:
    return "-" if pd.isna(number) else str(int(number))


def _latency(ms: float, source: object) -> str:
    return "-" if pd.isna(ms) else f"{ms:.3f} {source}"


def _accuracy(value: float, precision: object) -> str:
    return "-" if pd.isna(value) else f"{value:.3f} {precision}"


def _ranks(old: float, new: float) -> str:
    if math.isnan(old) or math.isnan(new):
        return "-"
    moved = int(old - new)
    return f"{int(old)} -> {int(new)}" + (f" ({moved:+d})" if moved else "")


def _elsewhere(row: Mapping[Hashable, Any]) -> str:
    """Say what a member of one front is in the other study."""
    if row["front"] == "both":
        return "front"
    standing = row["standing_new" if row["front"] == "only old" else "standing_old"]
    return str(standing) if pd.notna(standing) else "not looked at"
