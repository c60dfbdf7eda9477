"""An ablation study as a person sees it: a table for the terminal, a figure, and files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich import box
from rich.table import Table

from nas.errors import StorageError
from nas.results.ablation import LEVEL, AblationResult, Estimate, estimate_of
from nas.results.figures import write_figure
from nas.searcher.variants import BASELINE

__all__ = ["ablation_figure", "ablation_table", "write_ablation"]

_COLOURS = ("#1f6feb", "#1a7f37", "#bf8700", "#8250df", "#cf222e", "#0a7ea4", "#9a6700", "#57606a")


def ablation_table(result: AblationResult) -> Table:
    """Draw a study as a table: a section for each thing that was changed."""
    title = f"Ablation study {result.study}"
    table = Table(title=title, caption=result.caption, box=box.SIMPLE_HEAVY, show_edge=False)
    table.title_justify = table.caption_justify = "left"
    table.add_column("variant", overflow="fold")
    # Two lines each, so that a row fits a terminal.
    for column in (
        "seeds",
        "mAP50-95 [95 %]",
        "difference [95 %]",
        "latency ms [95 %]",
        "difference [95 %]",
        "CPU ms\nmemory",
        "parameters\nMACs",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    before = ""
    for _, row in result.table.iterrows():
        if row["changed"] != before:
            table.add_section()
        before = row["changed"]
        table.add_row(*_cells(row), style="bold" if row["variant"] == BASELINE else None)
    return table


def ablation_figure(result: AblationResult) -> go.Figure:
    """Draw every difference to the baseline with its interval: mAP left, latency right."""
    table = result.table
    table = table[table["variant"] != BASELINE]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.08)
    for number, (_, rows) in enumerate(table.groupby("changed", sort=False)):
        colour = _COLOURS[number % len(_COLOURS)]
        for column, (name, unit) in enumerate((("map_delta", ""), ("latency_delta", "_ms")), 1):
            trace = _dots(rows, name, unit, colour)
            trace.showlegend = column == 1
            figure.add_trace(trace, row=1, col=column)
    figure.add_vline(x=0, line={"color": "#57606a", "dash": "dash"})
    # The first variant stands on top, as in the table.
    names = table["variant"].tolist()
    height = 90 + 28 * max(len(names), 3)
    figure.update_yaxes(categoryorder="array", categoryarray=names, autorange="reversed")
    for column, quantity in ((1, "mAP50-95"), (2, "latency, ms")):
        title = f"{quantity}: difference to the baseline (bars: 95 %)"
        # Else 0.0002 mAP would be written as 200 millionths, with a prefix.
        figure.update_xaxes(title=title, exponentformat="none", col=column)
    lines = result.caption.replace(". ", ".<br>")
    top = 70 + 17 * (lines.count("<br>") + 1)  # pixels that the caption takes
    # Beside the panels, a legend taller than they are would have to be scrolled.
    below = 20 + 29 * table["changed"].nunique()
    figure.update_layout(
        title={
            "text": f"Ablation study {result.study}",
            "subtitle": {"text": lines},
            "yref": "container",
            "y": 1 - 25 / (top + height + below),
        },
        template="plotly_white",
        legend={
            "title": "changed",
            "yref": "container",
            "y": 0.01,
            "yanchor": "bottom",
            "x": 0,
        },
        width=1100,
        height=top + height + below,
        margin={"t": top, "b": 90 + below},
    )
    return figure


def write_ablation(result: AblationResult, folder: Path) -> list[Path]:
    """Write the table and the trainings as CSV and the figure as HTML; return the three files.

    Raises:
        StorageError: they cannot be written.
    """
    paths = [folder / name for name in ("ablation.csv", "trainings.csv", "ablation.html")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        result.table.to_csv(paths[0], index=False)
        result.trainings.drop(columns="resampled").to_csv(paths[1], index=False)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written to: {error.strerror}.") from error
    write_figure(ablation_figure(result), paths[2])
    return paths


def _cells(row: pd.Series) -> Iterator[str]:
    alone = "†" if row["interval_covers"] == "images" else ""
    marks = " †" if row["map_covers"] == "images" else ""
    marks += " *" if row["map_p_holm"] < 1 - LEVEL else ""
    share = 0.0 if math.isnan(row["latency_delta_share"]) else row["latency_delta_share"]
    moved = _shown(estimate_of(row, "latency_delta", "_ms"), "+.3f")
    against = f"\nagainst {row['reference']}" if row["reference"] != BASELINE else ""
    yield str(row["variant"]) + (f"\nis {row['same_as']}" if row["same_as"] else against)
    yield f"{row['seeds']}{alone}"
    yield _shown(estimate_of(row, "map50_95"), ".3f")
    yield _shown(estimate_of(row, "map_delta"), "+.3f") + f"\n{row['map_verdict']}{marks}"
    yield _shown(estimate_of(row, "latency", "_ms"), ".3f") + f"\n{row['latency_source']}"
    yield moved + (f" {share:+.0%}" if share else "") + f"\n{row['latency_verdict']}"
    yield _cost_cell(row)
    yield f"{row['parameters'] / 1e3:.0f} k\n{row['macs'] / 1e6:.1f} M"


def _cost_cell(row: pd.Series) -> str:
    time, memory = row["cpu_s_per_step"], row["peak_bytes"]
    first = "" if math.isnan(time) else f"{1e3 * time:.0f} x{row['time_ratio']:.2f}"
    return first if math.isnan(memory) else f"{first}\n{memory / 2**20:.0f} MB"


def _shown(estimate: Estimate, form: str) -> str:
    value, low, high = estimate.value, estimate.low, estimate.high
    if math.isnan(value):
        return ""
    if math.isnan(low):
        return f"{value:{form}}" if value else "0"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _dots(rows: pd.DataFrame, name: str, unit: str, colour: str) -> go.Scatter:
    changed = str(rows["changed"].iloc[0])
    values, low, high = (rows[f"{name}{end}{unit}"] for end in ("", "_low", "_high"))
    return go.Scatter(
        x=values,
        y=rows["variant"],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (high - values).fillna(0),
            "arrayminus": (values - low).fillna(0),
            "thickness": 1.5,
            "width": 4,
        },
        mode="markers",
        marker={"color": colour, "size": 9},
        name=changed,
        legendgroup=changed,
        customdata=rows[["seeds", "map_covers", "latency_source", "before", "after"]],
        hovertemplate=(
            "%{y}<br>%{x:+.4f}<br>%{customdata[3]} to %{customdata[4]}<br>%{customdata[0]} seeds, "
            "interval of mAP over %{customdata[1]}<br>latency %{customdata[2]}<extra></extra>"
        ),
    )
