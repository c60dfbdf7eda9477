"""Whether the ranking of a study holds, as a person reads it: tables, a figure, a file, a line."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nas.errors import NasError, StorageError
from nas.results.figures import write_figure
from nas.searcher.progress import Listener
from nas.searcher.ranking import RESOLUTION, TOP_SHARE, WINDOW, Statistic
from nas.searcher.request import Parent
from nas.searcher.result import FULL_TRUST, SHORT_TRUST, StudyResult, find_trust
from nas.searcher.setting import Setting
from nas.searcher.trust import BASELINES, SCORE, Trust, shown
from nas.searcher.trust_job import Effort, check_trust
from nas.units import percent

__all__ = [
    "checked",
    "full_check_line",
    "trust_figure",
    "trust_line",
    "trust_tables",
    "write_trust",
]

_STYLES = {"pass": "green", "fail": "bold red", "cannot tell": "yellow", "not checked": "yellow"}
_COLORS = {SCORE: "#1f6feb", "MACs": "#57606a", "parameters": "#8c959f", "latency": "#bf8700"}
_GREY = "#9aa5b1"
_LINE = 150  # characters of a line above the figure
_SIDES = {
    "overall": "all pairs",
    "top": f"top {percent(TOP_SHARE)}",
    "window": f"within {percent(WINDOW)} of latency",
}


def checked(setting: Setting, result: StudyResult, listener: Listener) -> StudyResult:
    """Check the ranking of a search briefly, unless it asked not to; the result says what came out.

    A re-targeted study trains nothing: it has the verdict on its parent, whose weights it takes.
    A check that fails does not fail the search: the result says that nothing was checked, and why.

    Raises:
        StorageError: table or figure cannot be written.
        KeyboardInterrupt: the user stopped; the study can be used, and the check continued.
    """
    if setting.request.parent is not None:
        return dataclasses.replace(result, trust=_handed_down(setting, setting.request.parent))
    if not setting.request.checks_ranking:
        return result
    try:
        trust = check_trust(setting, result, Effort.short(setting.request), listener)
    except StorageError:
        raise
    except NasError as error:
        text = f"Nobody knows whether the ranking holds, as the check of it failed: {error}"
        verdict = {"outcome": "not checked", "text": text}
        return dataclasses.replace(result, trust={"form": "short", "verdict": verdict})
    write_trust(trust, setting.request.workspace.bundle(result.study))
    return dataclasses.replace(result, trust=trust.as_dict())


def _handed_down(setting: Setting, parent: Parent) -> dict[str, Any] | None:
    """Keep the report on a parent for its child too, unless that was checked in full itself."""
    database, study = setting.database, str(setting.request.study)
    own, theirs = database.find_report(study, FULL_TRUST), find_trust(database, parent.study)
    if own is not None or theirs is None:
        return own
    verdict = theirs["verdict"]
    text = f"Of the study {parent.study}, whose weights these are: {verdict['text']}"
    report = {**theirs, "verdict": {**verdict, "text": text}}
    database.add_report(study, SHORT_TRUST, report)
    return report


def trust_line(report: Mapping[str, Any] | None) -> Text:
    """Say in one paragraph whether the ranking of a study holds.

    Args:
        report: as `StudyResult.trust` has it.
    """
    if report is None:
        return Text("Nobody checked whether the ranking holds.", style="yellow")
    verdict = report["verdict"]
    return Text(verdict["text"], style=_STYLES[verdict["outcome"]])


def full_check_line(report: Mapping[str, Any] | None, command: str) -> str:
    """Say how the ranking is checked in full; nothing if it was.

    Args:
        report: as `StudyResult.trust` has it.
        command: that does.
    """
    return "" if report is not None and report["form"] == "full" else f"In full: {command}"


def trust_tables(trust: Trust) -> Group:
    """Draw the ranks, the baselines beside them, the regret of the picks, and what it all says."""
    return Group(
        _ranks(trust),
        Text(),
        _regrets(trust),
        Text(),
        *(Text(line) for line in _facts(trust)),
        trust_line(trust.as_dict()),
    )


def trust_figure(trust: Trust) -> go.Figure:
    """Draw score against stand-alone accuracy, and beside it every tau with its interval."""
    figure = make_subplots(rows=1, cols=2, column_widths=[0.6, 0.4], horizontal_spacing=0.2)
    table = trust.table
    ends = table[["score_low", "reference_low", "score_high", "reference_high"]].to_numpy()
    line = [float(ends.min()), float(ends.max())]
    figure.add_trace(
        go.Scatter(
            x=line,
            y=line,
            mode="lines",
            line={"color": _GREY, "dash": "dash", "width": 1},
            name="score = stand-alone",
            hoverinfo="skip",
        ),
        row=1,
        col=1,
    )
    figure.add_trace(_landmarks(table), row=1, col=1)
    for number, (name, ranking) in enumerate(trust.rankings.items()):
        figure.add_trace(_taus(name, vars(ranking), number), row=1, col=2)
    for value, dash in ((0.0, "solid"), (trust.threshold, "dot")):
        figure.add_vline(x=value, row=1, col=2, line={"color": _GREY, "dash": dash, "width": 1})
    _lay_out(figure, trust)
    return figure


def write_trust(trust: Trust, folder: Path) -> list[Path]:
    """Write the figure as `trust.html` and the landmarks as `trust.csv`; returns the files.

    Raises:
        StorageError: they cannot be written.
    """
    table, figure = folder / "trust.csv", folder / "trust.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trust.table.to_csv(table, index=False)
    except OSError as error:
        raise StorageError(f"{table} cannot be written: {error.strerror}.") from error
    write_figure(trust_figure(trust), figure)
    return [figure, table]


def _ranks(trust: Trust) -> Table:
    table = Table(
        title=escape(f"Kendall's tau with stand-alone accuracy, landmarks of {trust.study}"),
        box=box.SIMPLE_HEAVY,
        title_justify="left",
        show_edge=False,
    )
    table.add_column("ranked by")
    ours = trust.rankings[SCORE]
    for side, name in _SIDES.items():
        pairs = getattr(ours, side).pairs
        table.add_column(f"{name} ({pairs} pairs)", justify="right", no_wrap=True)
    table.add_column("score's gain on it, all pairs", justify="right", no_wrap=True)
    for name, ranking in trust.rankings.items():
        cells = [shown(getattr(ranking, side)) for side in _SIDES]
        gain = shown(trust.gains[name]) if name in BASELINES else ""
        style = "bold" if name == SCORE else None
        table.add_row(name, *map(escape, (*cells, gain)), style=style)
    rounded = f"score in steps of {RESOLUTION} mAP"
    table.add_row(rounded, escape(shown(trust.sparse)), "", "", "")
    if trust.seeds > 1:
        table.add_row("another seed (ceiling)", escape(shown(trust.ceiling)), "", "", "")
    return table


def _regrets(trust: Trust) -> Table:
    table = Table(
        title="What the pick by each ranking loses at a budget, mAP points",
        box=box.SIMPLE_HEAVY,
        title_justify="left",
        show_edge=False,
    )
    table.add_column("picked by")
    lost = trust.regrets
    for budget, landmarks in zip(lost["budget_ms"], lost["landmarks"], strict=True):
        table.add_column(f"{budget:.3g} ms ({landmarks})", justify="right", no_wrap=True)
    for name in trust.rankings:
        style = "bold" if name == SCORE else None
        table.add_row(name, *(f"{value:.2f}" for value in lost[name]), style=style)
    return table


def _facts(trust: Trust) -> list[str]:
    mean, slope = trust.gap.mean, trust.gap.slope
    seeds = "1 seed" if trust.seeds == 1 else f"{trust.seeds} seeds"
    facts = [
        f"{len(trust.landmarks)} landmarks, {seeds}, {trust.iterations} steps each of "
        f"{trust.recipe_iterations} of the recipe; {trust.cpu_s:.0f} s of CPU in training. "
        "Intervals: 95 %, bootstrap over landmarks.",
        f"Score minus stand-alone: {100 * mean.value:+.1f} points {_points(mean)} in the mean, "
        f"{100 * slope.value:+.2f} points {_points(slope)} per doubling of the MACs.",
    ]
    if trust.seeds == 1:
        facts.append("With one seed nothing is known of the noise of the references.")
    return facts + [f"Left out: {name}: {reason}" for name, reason in trust.failed.items()]


def _points(one: Statistic) -> str:
    if not (math.isfinite(one.low) and math.isfinite(one.high)):
        return "(no interval)"
    return f"[{100 * one.low:+.2f}, {100 * one.high:+.2f}]"


def _landmarks(table: pd.DataFrame) -> go.Scatter:
    return go.Scatter(
        x=table["reference"],
        y=table["score"],
        error_x=_bars(table, "reference"),
        error_y=_bars(table, "score"),
        mode="markers",
        name="landmark (bars: 95 % over images)",
        marker={
            "size": 10,
            "color": table["latency_ms"],
            "colorscale": "Viridis",
            "colorbar": {"title": "ms", "x": 0.525, "thickness": 12},
        },
        customdata=table[["name", "latency_ms", "macs"]],
        hovertemplate=(
            "%{customdata[0]}<br>score %{y:.3f}, stand-alone %{x:.3f}<br>"
            "%{customdata[1]:.3f} ms, %{customdata[2]:,} MACs<extra></extra>"
        ),
    )


def _bars(table: pd.DataFrame, name: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": table[f"{name}_high"] - table[name],
        "arrayminus": table[name] - table[f"{name}_low"],
        "color": _GREY,
        "thickness": 1,
        "width": 0,
    }


def _taus(name: str, sides: Mapping[str, Statistic], number: int) -> go.Scatter:
    """Draw the taus of one ranking, a little below those of the ranking before it."""
    values = [sides[side] for side in _SIDES]
    return go.Scatter(
        x=[one.value for one in values],
        y=[place + 0.18 * (number - 1.5) for place in range(len(values))],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [one.high - one.value for one in values],
            "arrayminus": [one.value - one.low for one in values],
            "thickness": 1.5,
            "width": 3,
        },
        mode="markers",
        marker={"color": _COLORS[name], "size": 9 if name == SCORE else 7},
        name=f"tau of {name}",
        hovertemplate="%{x:.2f}<extra></extra>",
    )


def _lay_out(figure: go.Figure, trust: Trust) -> None:
    texts = (trust.verdict.text, " ".join(_facts(trust)))
    lines = "<br>".join(line for text in texts for line in textwrap.wrap(text, _LINE))
    outcome = trust.verdict.outcome.upper()
    figure.update_xaxes(title="mAP50-95 trained on its own, validation", row=1, col=1)
    figure.update_yaxes(title="search score: mAP50-95, inherited weights", row=1, col=1)
    figure.update_xaxes(title="Kendall's tau (bars: 95 %)", range=[-1.05, 1.05], row=1, col=2)
    figure.update_yaxes(
        tickvals=list(range(len(_SIDES))),
        ticktext=[name.replace(" of ", "<br>of ") for name in _SIDES.values()],
        range=[len(_SIDES) - 0.5, -0.5],
        row=1,
        col=2,
    )
    figure.update_layout(
        title={
            "text": f"Does the ranking of {trust.study} hold? {outcome}",
            "subtitle": {"text": lines},
            "yref": "container",
            "y": 0.96,
        },
        template="plotly_white",
        legend={"orientation": "h", "y": -0.16},
        width=1150,
        height=680,
        margin={"t": 80 + 17 * (lines.count("<br>") + 1)},
    )
