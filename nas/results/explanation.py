"""What a study says about its choices: a table, a figure and a file of every effect."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, qualitative
from plotly.subplots import make_subplots
from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nas.errors import StorageError, StudyError
from nas.results.ablation import holm
from nas.results.figures import write_figure
from nas.searcher.additive import SPARE_FOR_PAIRS, Explained
from nas.searcher.importance import Importance

__all__ = ["Explanation", "explanation_figure", "explanation_table", "write_explanation"]

_UNTOLD = "cannot be told from 0"
_MOST_PAIRS = 3
_GREY, _LINE = "#9aa5b1", "#57606a"
_NAME = (0.16, 0.045)  # width and height of a name, as shares of the upper panel
_AXES = {"map": "mAP50-95, points", "latency": "latency, %"}


@dataclass(frozen=True)
class Explanation:
    """Which choices moved what in a study, as a person reads it: mAP in points, latency in %.

    Attributes:
        importance: the numbers.
    """

    importance: Importance

    @property
    def study(self) -> str:
        """Its name."""
        return self.importance.study

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per option; the choices that surely move mAP come first, the widest first.

        Of mAP50-95 (`map_*`, points) and of latency (`latency_*`, % of the geometric mean) each:
        `tried` candidates, the `effect` against their mean with the ends `low` and `high` of its
        95 % interval, and of the whole choice the `share` of the variance with its interval (0..1),
        `told` (whether it can be told from none), `p`, and `p_holm`, adjusted for all choices.
        """
        sides = {"map": self.importance.accuracy, "latency": self.importance.latency}
        columns = [_columns(name, side) for name, side in sides.items() if side.choices]
        if not columns:
            return pd.DataFrame()
        leading = next(side for side in sides.values() if side.choices)
        order = sorted(leading.choices, key=lambda one: (not one.is_told, -one.spread))
        table = pd.concat(columns, axis=1)
        return table.loc[[choice.name for choice in order]].reset_index()

    @property
    def caption(self) -> str:
        """Say what was fitted to what, how well it holds, and what the intervals cover."""
        accuracy, latency = self.importance.accuracy, self.importance.latency
        sources = ", ".join(f"{n} {source}" for source, n in self.importance.sources.items())
        parts = [
            _summary("mAP50-95", accuracy, "scored with inherited weights"),
            _summary("Latency", latency, sources),
        ]
        if not self.table.empty:
            parts += [
                "Effects are against the mean of the candidates, all choices fitted at once. "
                "The 95 % intervals cover which candidates were tried; "
                "another supernet or other images are another study.",
                "Without any effect, 1 in 20 choices would still be told from 0; a star marks what "
                "holds after Holm's correction for their number.",
                _pairs("mAP50-95", accuracy, 100.0, "points"),
                _pairs("Latency", latency, 100.0, "%"),
            ]
        return "\n".join(part for part in parts if part)


def explanation_table(explanation: Explanation) -> RenderableType:
    """Draw what every option does, a section for each choice; or say why nothing can be told."""
    if explanation.table.empty:
        return Text(explanation.caption)
    table = Table(
        title=escape(f"What moved mAP and latency in {explanation.study}"),
        caption=escape(explanation.caption),
        box=box.SIMPLE_HEAVY,
        show_edge=False,
    )
    table.title_justify = table.caption_justify = "left"
    rows = explanation.table
    for column in ("choice", "option", "tried"):
        table.add_column(column, overflow="fold", justify="right" if column == "tried" else "left")
    sides = [side for side in _AXES if f"{side}_effect" in rows]
    for side in sides:
        table.add_column(f"{_AXES[side]} [95 %]", justify="right", no_wrap=True)
        table.add_column("share of its variance", justify="right")
    for _, options in rows.groupby("choice", sort=False):
        table.add_section()
        for number, (_, row) in enumerate(options.iterrows()):
            tried = " / ".join(str(row[f"{side}_tried"]) for side in sides)
            cells = [cell for side in sides for cell in _cells(row, side, is_first=number == 0)]
            name = "" if number else escape(str(row["choice"]))
            table.add_row(name, escape(str(row["option"])), tried, *cells)
    return table


def explanation_figure(explanation: Explanation) -> go.Figure:
    """Draw what every option costs and brings: against each other, and each with its interval.

    The upper panel joins the options of a choice from small to large: steep and leftward is cheap.
    What cannot be told from 0 in either is grey.

    Raises:
        StudyError: nothing can be told about one of the two.
    """
    for explained in (explanation.importance.accuracy, explanation.importance.latency):
        if explained.reason:
            raise StudyError(explained.reason, "Search on, with more evaluations.")
    table = explanation.table
    heights = [540, 40 + 20 * len(table)]
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        row_heights=heights,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=90 / sum(heights),
    )
    labels = _labels(table)
    for number, (_, rows) in enumerate(table.groupby("choice", sort=False)):
        is_told = bool(rows["map_told"].iloc[0] or rows["latency_told"].iloc[0])
        color = qualitative.Dark24[number % 24] if is_told else _GREY
        figure.add_trace(_path(rows, color, labels, is_told=is_told), row=1, col=1)
        for column, side in enumerate(_AXES, 1):
            figure.add_trace(_dots(rows, side, color), row=2, col=column)
    _lay_out(figure, explanation, heights)
    return figure


def write_explanation(explanation: Explanation, path: Path) -> list[Path]:
    """Write the figure as HTML (`.html` is added to other names), the table as CSV beside it.

    Where only one of mAP and latency can be told about, there is no figure; where neither can,
    nothing is written. Returns the files.

    Raises:
        StorageError: they cannot be written.
    """
    if explanation.table.empty:
        return []
    if path.suffix != ".html":  # it may be the name of the table
        path = path.with_name(f"{path.name}.html")
    paths = [path.with_suffix(".csv")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        explanation.table.to_csv(paths[0], index=False)
    except OSError as error:
        raise StorageError(f"{paths[0]} cannot be written: {error.strerror}.") from error
    if not (explanation.importance.accuracy.reason or explanation.importance.latency.reason):
        write_figure(explanation_figure(explanation), path)
        paths.insert(0, path)
    return paths


def _columns(side: str, explained: Explained) -> pd.DataFrame:
    """Return a row per option, indexed by choice and option."""
    known = [one.name for one in explained.choices if math.isfinite(one.p)]
    p_values = [one.p for one in explained.choices if math.isfinite(one.p)]
    adjusted = dict(zip(known, holm(p_values), strict=True))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for choice in explained.choices:
        whole = {
            "share": choice.share,
            "share_low": choice.share_low,
            "share_high": choice.share_high,
            "told": choice.is_told,
            "p": choice.p,
            "p_holm": adjusted.get(choice.name, math.nan),
        }
        for option in choice.options:
            row = {"tried": option.tried, "effect": 100 * option.effect}
            row |= {"low": 100 * option.low, "high": 100 * option.high}
            rows[choice.name, str(option.label)] = row | whole
    table = pd.DataFrame.from_dict(rows, orient="index").add_prefix(f"{side}_")
    table.index = pd.MultiIndex.from_tuples(rows, names=["choice", "option"])
    return table


def _summary(what: str, explained: Explained, how: str) -> str:
    if explained.reason:
        return f"{what}: {explained.reason}"
    trend = " Too few for a number per option: options count as even steps from small to large."
    doubt = " The effects together predict no better than the mean: they may mislead."
    return (
        f"{what}: {explained.candidates} candidates ({how}), {explained.numbers} free numbers; R2 "
        f"{explained.r2:.2f}, of candidates left out {explained.r2_left_out:.2f}."
        + (trend if explained.coding == "trend" else "")
        + (doubt if explained.r2_left_out <= 0 else "")
    )


def _pairs(what: str, explained: Explained, scale: float, unit: str) -> str:
    """Say which pairs of choices do more, or less, than the sum of their effects."""
    if explained.reason:
        return ""
    told = [one for one in explained.interactions if one.is_told]
    if told:
        named = (
            f"{one.first} x {one.second} ({scale * one.effect:+.2g} {unit} from smallest to "
            f"largest in both, p {one.p:.2g})"
            for one in sorted(told, key=lambda one: -one.share)[:_MOST_PAIRS]
        )
        return f"{what} beyond the sum of effects: {', '.join(named)}."
    if explained.interactions:
        return f"{what}: none of {len(explained.interactions)} pairs of choices departs from it."
    return (
        f"{what}: pairs of choices are not tested; it takes {SPARE_FOR_PAIRS} candidates more than "
        "free numbers."
    )


def _cells(row: pd.Series, side: str, *, is_first: bool) -> Iterator[str]:
    """Yield the effect of an option, and beside the first one the share of its choice."""
    effect, low, high = (row[f"{side}_{end}"] for end in ("effect", "low", "high"))
    dim = "" if low > 0 or high < 0 else "[dim]"
    if math.isnan(effect):
        yield "[dim]not told apart" if row[f"{side}_tried"] else "[dim]never tried"
    elif math.isnan(low):
        yield f"{dim}{effect:+.2f} (hangs on one candidate)"
    else:
        yield rf"{dim}{effect:+.2f} \[{low:+.2f}, {high:+.2f}]"
    share, least, most = (
        100 * row[f"{side}_{end}"] for end in ("share", "share_low", "share_high")
    )
    star = " *" if row[f"{side}_p_holm"] < 0.05 else ""
    if not is_first:
        yield ""
    elif row[f"{side}_told"]:
        digits = 0 if share >= 10 else 1
        yield rf"{share:.{digits}f} % \[{least:.{digits}f}, {most:.{digits}f}]{star}"
    else:
        yield f"[dim]{_UNTOLD}"


def _labels(table: pd.DataFrame) -> set[str]:
    """Choose which options bear their name in the upper panel: names must not cover each other.

    The option of a choice that lies farthest out is named, if no name of a choice that moved more
    lies where its own would; whoever points at the others is told.
    """
    drawn = table[table["map_effect"].notna() & table["latency_effect"].notna()]
    # The axes hold an option that has one effect alone, too.
    across, up = table["latency_effect"], table["map_effect"]
    places = pd.DataFrame(
        {
            "x": drawn["latency_effect"] / max(across.max() - across.min(), 1e-9),
            "y": drawn["map_effect"] / max(up.max() - up.min(), 1e-9),
            "name": _names(drawn),
            "choice": drawn["choice"],
        }
    )[drawn["map_told"] | drawn["latency_told"]]
    named = [(0.0, 0.0, "")]  # where everything that moved little lies
    for _, rows in places.groupby("choice", sort=False):
        farthest = rows.iloc[int(np.hypot(rows["x"], rows["y"]).argmax())]
        x, y, name = float(farthest["x"]), float(farthest["y"]), str(farthest["name"])
        if all(abs(x - a) > _NAME[0] or abs(y - b) > _NAME[1] for a, b, _ in named):
            named.append((x, y, name))
    return {name for _, _, name in named}


def _path(rows: pd.DataFrame, color: str, labels: set[str], *, is_told: bool) -> go.Scatter:
    """Join the options of a choice, at what each costs and brings."""
    name, names = str(rows["choice"].iloc[0]), _names(rows)
    return go.Scatter(
        x=rows["latency_effect"],
        y=rows["map_effect"],
        mode="lines+markers+text" if is_told else "lines+markers",
        text=[one if one in labels else "" for one in names],
        cliponaxis=False,
        hovertext=names,
        textposition="top right",
        textfont={"size": 10, "color": color},
        error_x={**_bars(rows, "latency"), "color": _faint(color)},
        error_y={**_bars(rows, "map"), "color": _faint(color)},
        line={"color": color, "width": 2 if is_told else 1},
        marker={"size": 8 if is_told else 5},
        name=name if is_told else f"{name} ({_UNTOLD})",
        legendgroup=name,
        hovertemplate="%{hovertext}<br>mAP %{y:+.2f} points<br>latency %{x:+.1f} %<extra></extra>",
    )


def _dots(rows: pd.DataFrame, side: str, color: str) -> go.Scatter:
    """Draw the options of a choice below each other, each with its interval."""
    faint = [_GREY if low <= 0 <= high else color for low, high in _ends(rows, side)]
    return go.Scatter(
        x=rows[f"{side}_effect"],
        y=_names(rows),
        mode="markers",
        marker={"color": faint, "size": 8},
        error_x={**_bars(rows, side), "color": color if rows[f"{side}_told"].iloc[0] else _GREY},
        legendgroup=str(rows["choice"].iloc[0]),
        showlegend=False,
        customdata=rows[[f"{side}_tried", f"{side}_share"]],
        hovertemplate="%{y}<br>%{x:+.2f}<br>%{customdata[0]} candidates, %{customdata[1]:.0%} of "
        "the variance<extra></extra>",
    )


def _faint(color: str) -> str:
    red, green, blue = hex_to_rgb(color)
    return f"rgba({red}, {green}, {blue}, 0.4)"


def _names(rows: pd.DataFrame) -> list[str]:
    return [
        f"{choice} {option}" for choice, option in zip(rows["choice"], rows["option"], strict=True)
    ]


def _ends(rows: pd.DataFrame, side: str) -> Iterator[tuple[float, float]]:
    return zip(rows[f"{side}_low"], rows[f"{side}_high"], strict=True)


def _bars(rows: pd.DataFrame, side: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": rows[f"{side}_high"] - rows[f"{side}_effect"],
        "arrayminus": rows[f"{side}_effect"] - rows[f"{side}_low"],
        "thickness": 1,
        "width": 0,
    }


def _lay_out(figure: go.Figure, explanation: Explanation, heights: list[int]) -> None:
    lines = explanation.caption.replace("\n", "<br>")
    top = 60 + 17 * (lines.count("<br>") + 1)  # pixels that the caption takes
    height = top + sum(heights) + 60
    zero = {"line": {"color": _LINE, "dash": "dash", "width": 1}}
    for row, column in ((1, 1), (2, 1), (2, 2)):
        figure.add_vline(x=0, row=row, col=column, **zero)
    figure.add_hline(y=0, row=1, col=1, **zero)
    figure.update_xaxes(title="latency against the geometric mean, %", row=1, col=1)
    figure.update_yaxes(title="mAP50-95 against the mean, points", row=1, col=1)
    for column, title in enumerate(_AXES.values(), 1):
        figure.update_xaxes(title=f"{title} (bars: 95 %)", row=2, col=column)
    # The first choice stands on top, as in the table.
    names = _names(explanation.table)
    figure.update_yaxes(categoryorder="array", categoryarray=names, row=2)
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], row=2)
    figure.update_layout(
        title={
            "text": f"What moved mAP and latency in {explanation.study}",
            "subtitle": {"text": lines},
            "yref": "container",
            "y": 1 - 25 / height,
        },
        template="plotly_white",
        legend={"title": "choice", "y": 1, "yanchor": "top"},
        width=1250,
        height=height,
        margin={"t": top, "l": 150},
    )
