"""Pictures of a study, as interactive plotly figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from nas.errors import StorageError
from nas.results.latency import levels
from nas.searcher.result import StudyResult

__all__ = ["TICKS", "front_figure", "write_figure"]

# Round latencies in ms from a microsecond to ten seconds, close enough for any part of the axis.
TICKS = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 1.5, 2, 2.5, 3, 4, 5, 7)]
_GREY, _BLUE, _GREEN, _RED = "#9aa5b1", "#1f6feb", "#1a7f37", "#cf222e"


def front_figure(result: StudyResult, winner: int | None = None) -> go.Figure:
    """Draw accuracy over latency: every candidate with its interval, the front, the budget."""
    figure = go.Figure()
    scored, front = result.scored, result.front.sort_values("latency_ms")
    floor = _floor(scored)
    table = result.evaluations
    late = table[table["state"] == "infeasible"].drop_duplicates("architecture")
    if not late.empty:
        figure.add_trace(
            go.Scatter(
                x=late["latency_ms"],
                y=[floor] * len(late),  # they have no accuracy: they stand on the axis
                mode="markers",
                name=f"over budget or another bound, never scored ({len(late)})",
                marker={"symbol": "x", "color": _GREY, "size": 7},
                hovertemplate="trial %{customdata}<br>%{x:.3f} ms<extra></extra>",
                customdata=late["trial"],
            )
        )
    if not (slow := _over(result)).empty:
        name = f"scored, but over this budget ({len(slow)})"
        figure.add_trace(_points(slow, name, _GREY, 7, "x"))
    if not (stopped := result.stopped).empty:
        figure.add_trace(_estimates(stopped))
    figure.add_trace(_points(scored, f"scored under budget ({len(scored)})", _GREY, 7))
    figure.add_trace(
        go.Scatter(
            x=front["latency_ms"],
            y=front["map50_95"],
            mode="lines",
            line={"shape": "hv", "color": _BLUE, "width": 2},
            showlegend=False,
            hoverinfo="skip",
        )
    )
    figure.add_trace(_points(front, f"front ({len(front)})", _BLUE, 9))
    chosen = scored[scored["trial"] == winner]
    if not chosen.empty:
        figure.add_trace(_points(chosen, f"winner: trial {winner}", _GREEN, 15, "star"))
    shown = scored if slow.empty else slow if scored.empty else pd.concat([scored, slow])
    ceiling = float(shown["map50_95_high"].max()) if len(shown) else 1.0
    figure.add_trace(
        go.Scatter(
            x=[result.budget.latency_ms] * 2,
            y=[floor, ceiling],
            mode="lines",
            name=f"budget {result.budget}",
            line={"color": _RED, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(type="log", tickvals=TICKS, ticktext=[f"{tick:g}" for tick in TICKS])
    figure.update_layout(
        title=f"{result.study}: accuracy over latency",
        xaxis_title=_latency_title(scored),
        yaxis_exponentformat="none",
        yaxis_title="mAP50-95 on validation, inherited weights (bars: 95 % interval)",
        template="plotly_white",
        # Below, as no corner is free: what broke the budget stands on the axis.
        legend={"orientation": "h", "x": 0, "y": -0.18, "yanchor": "top"},
        width=960,
        height=620,
    )
    return figure


def write_figure(figure: go.Figure, path: Path) -> None:
    """Write a figure as one HTML file that needs no network.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.write_html(path, include_plotlyjs=True)
    except OSError as error:
        raise StorageError(f"The figure {path} cannot be written: {error.strerror}.") from error


def _latency_title(scored: pd.DataFrame) -> str:
    """Say what the latencies are, and what their bars hold."""
    sources = sorted(set(scored["latency_source"].dropna()))
    return (
        f"latency in ms, {', '.join(sources) or 'none'}; log scale (bars: {levels(sources)} "
        "interval)"
    )


def _over(result: StudyResult) -> pd.DataFrame:
    """Return the scored candidates that a smaller budget than the study's leaves out."""
    table = result.evaluations
    table = table[table["map50_95"].notna() & (table["latency_ms"] > result.budget.latency_ms)]
    return table.drop_duplicates(["architecture", "precision"])


def _floor(scored: pd.DataFrame) -> float:
    """Return an mAP a little below every scored candidate, where nothing else is drawn."""
    if scored.empty:
        return 0.0
    lowest, highest = scored["map50_95"].min(), scored["map50_95"].max()
    return max(0.0, float(lowest - 0.15 * max(highest - lowest, 0.02)))


def _estimates(stopped: pd.DataFrame) -> go.Scatter:
    """Draw what was scored in part: hollow, because it stands on no front."""
    return go.Scatter(
        x=stopped["latency_ms"],
        y=stopped["estimate"],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": stopped["estimate_high"] - stopped["estimate"],
            "arrayminus": stopped["estimate"] - stopped["estimate_low"],
            "thickness": 1,
            "width": 0,
        },
        mode="markers",
        name=f"stopped: an estimate from part of the evaluation ({len(stopped)})",
        marker={"color": _GREY, "size": 7, "symbol": "circle-open"},
        customdata=stopped[["trial", "fidelity", "estimate_images"]],
        hovertemplate=(
            "trial %{customdata[0]}: estimate %{y:.3f}<br>%{customdata[1]}, "
            "%{customdata[2]} images<br>%{x:.3f} ms<extra></extra>"
        ),
    )


def _points(
    table: pd.DataFrame, name: str, color: str, size: int, symbol: str = "circle"
) -> go.Scatter:
    return go.Scatter(
        x=table["latency_ms"],
        y=table["map50_95"],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": table["latency_high_ms"] - table["latency_ms"],
            "arrayminus": table["latency_ms"] - table["latency_low_ms"],
            "thickness": 1,
            "width": 0,
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "array": table["map50_95_high"] - table["map50_95"],
            "arrayminus": table["map50_95"] - table["map50_95_low"],
            "thickness": 1,
            "width": 0,
        },
        mode="markers",
        name=name,
        marker={"color": color, "size": size, "symbol": symbol},
        customdata=table[["trial", "latency_source", "map50", "precision"]],
        hovertemplate=(
            "trial %{customdata[0]} (%{customdata[3]})<br>mAP50-95 %{y:.3f}, mAP50 "
            "%{customdata[2]:.3f}<br>%{x:.3f} ms, %{customdata[1]}<extra></extra>"
        ),
    )
