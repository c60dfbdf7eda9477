"""Was the search worth it? The winner beside what plain rules would have taken, with intervals.

Winner and rivals were trained further alike, with the same seeds and steps, and scored once each on
the test split, which chose nothing (`nas.results.comparison` has the intervals). Plain rules may
win: what they take is chosen among on validation as all others are, and then the search was worth
no more than the rule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
from rich import box
from rich.table import Table

from nas.errors import StorageError
from nas.results.ablation import Estimate
from nas.results.figures import write_figure
from nas.units import percent

__all__ = [
    "KIND",
    "Rival",
    "Worth",
    "worth_figure",
    "worth_section",
    "worth_table",
    "write_worth",
]

KIND = "worth"
"""How these reports are marked in the database."""

Verdict = Literal["the same network", "better", "no difference seen", "worse"]


@dataclass(frozen=True)
class Rival:
    """A network in the comparison; the winner is one, too.

    Attributes:
        name: what chose it.
        architecture: digest.
        precision: of its engine.
        start: `inherited` weights, or from `scratch` by the whole recipe.
        latency_ms: mean of its builds.
        bound_ms: what a fresh build stays below with the stated confidence.
        keeps: whether that is within the budget.
        over_images: mAP50-95, mean over seeds, with its interval over images.
        over_seeds: the same with its interval over seeds.
        gain: winner minus this one, with its interval over images and seeds.
        same: it is the winner's network.
    """

    name: str
    architecture: str
    precision: str
    start: str
    latency_ms: float
    bound_ms: float
    keeps: bool
    over_images: Estimate
    over_seeds: Estimate
    gain: Estimate
    same: bool

    @property
    def verdict(self) -> Verdict:
        """What the winner is beside it."""
        if self.same:
            return "the same network"
        if self.gain.low > 0:
            return "better"
        return "worse" if self.gain.high < 0 else "no difference seen"

    @property
    def sentence(self) -> str:
        """Say how the winner stands to it."""
        gain = f"{_points(self.gain)} mAP points"
        remark = "" if self.keeps else ", though it does not surely keep the budget"
        match self.verdict:
            case "the same network":
                return f"The winner is the same network as {self.name}."
            case "better":
                return f"The winner beats {self.name}: {gain}{remark}."
            case "worse":
                return f"The winner loses to {self.name}: {gain}{remark}."
        return f"The winner is as good as {self.name}, as far as was seen: {gain}{remark}."

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rival:
        """Read what `dataclasses.asdict` wrote; JSON has no nan, so bounds may be missing."""
        estimates = {
            name: Estimate(**{key: one for key, one in values[name].items() if one is not None})
            for name in ("over_images", "over_seeds", "gain")
        }
        return cls(**{**values, **estimates})


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a search was worth, and what it cost.

    Attributes:
        study: its name.
        budget_ms: the hard bound.
        confidence: with which a fresh build of the winner keeps it; 0 where nothing is measured.
        split: on which all are scored.
        images: in it.
        seeds: with which each was trained.
        iterations: steps of a training; of those from scratch, the recipe's.
        delivered_seed: the training of the winner that is delivered: the best on validation.
        delivered: its own mAP50-95, with the interval over images.
        winner: what was chosen on validation.
        rivals: what it is compared with.
        seconds: what it cost: `supernet`, `search`, `ranking check`, `confirmation`, `baselines`;
            None is unknown.
            Trainings count the time of their processes, which may run side by side.
        missing: rules none of whose first choices surely keeps the budget.
    """

    study: str
    budget_ms: float
    confidence: float
    split: str
    images: int
    seeds: tuple[int, ...]
    iterations: int
    delivered_seed: int
    delivered: Estimate
    winner: Rival
    rivals: tuple[Rival, ...]
    seconds: Mapping[str, float | None]
    missing: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """Say whether the search was worth it beside the rivals that keep the budget."""
        names = {
            verdict: [one.name for one in self.rivals if one.keeps and one.verdict in of]
            for verdict, of in (
                ("beaten", ("better",)),
                ("equal", ("the same network", "no difference seen")),
                ("ahead", ("worse",)),
            )
        }
        if not any(names.values()):
            return "Nothing that keeps the budget was compared with the winner."
        if names["ahead"]:
            return f"No: {_listed(names['ahead'])} did better at the same training."
        if names["equal"] and names["beaten"]:
            return (
                f"Not for accuracy alone: as far as was seen, the winner is no better than "
                f"{_listed(names['equal'])}. The winner beats {_listed(names['beaten'])}."
            )
        if names["equal"]:
            return (
                "No gain was seen: the winner is no better, as far as was seen, than "
                f"{_listed(names['equal'])}."
            )
        return f"Yes: the winner beats {_listed(names['beaten'])}."

    @property
    def caption(self) -> str:
        """Say what was compared, and what the intervals hold."""
        trained = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        about = "images and seeds" if len(self.seeds) > 1 else "images alone"
        return (
            f"mAP50-95 of the engines on {self.images} {self.split} images, mean of {trained}, "
            f"{self.iterations} steps of training each; gain = winner minus the other, in "
            f"points of 100, 95 % interval over {about}. Latency: mean of several builds, and "
            f"what a fresh one stays below{_confidently(self.confidence)}.{self._left_out}"
        )

    @property
    def _left_out(self) -> str:
        if not self.missing:
            return ""
        return f" Not compared: {_listed(self.missing)}, whose first choices may break the budget."

    @property
    def cost(self) -> str:
        """Say what it cost, in seconds."""
        parts = ", ".join(
            f"{name} {'unknown' if value is None else f'{value:.0f} s'}"
            for name, value in self.seconds.items()
        )
        return f"Cost: {parts}."

    @property
    def table(self) -> pd.DataFrame:
        """One row per network, the winner first."""
        return pd.DataFrame([self._row(one) for one in (self.winner, *self.rivals)])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values: dict[str, Any] = _without_nan(dataclasses.asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Worth:
        """Read what `as_dict` returned."""
        delivered = {key: one for key, one in values["delivered"].items() if one is not None}
        read = {
            "seeds": tuple(values["seeds"]),
            "delivered": Estimate(**delivered),
            "winner": Rival.from_dict(values["winner"]),
            "rivals": tuple(Rival.from_dict(one) for one in values["rivals"]),
            "missing": tuple(values.get("missing", ())),
        }
        return cls(**{**values, **read})

    def _row(self, one: Rival) -> dict[str, Any]:
        row: dict[str, Any] = {
            name: getattr(one, name)
            for name in ("name", "architecture", "precision", "start", "latency_ms", "bound_ms")
        }
        row["keeps_budget"] = one.keeps
        row["map50_95"] = one.over_images.value
        for name in ("over_images", "over_seeds"):
            estimate = getattr(one, name)
            row |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        if one is not self.winner:
            row |= {"gain": one.gain.value, "gain_low": one.gain.low, "gain_high": one.gain.high}
            row["winner_is"] = one.verdict
        return row


def worth_table(worth: Worth) -> Table:
    """Draw the comparison as a table."""
    title = f"Was the search worth it? {worth.answer}"
    table = Table(title=title, caption=f"{worth.caption} {worth.cost}", box=box.SIMPLE_HEAVY)
    table.show_edge = False
    table.title_justify = table.caption_justify = "left"
    table.add_column("network", overflow="fold")
    for column in (
        "latency ms (fresh <)",
        "mAP50-95 (over images)",
        "(over seeds)",
        "gain, points [95 %]",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("the winner is")
    for one in (worth.winner, *worth.rivals):
        wins = one is worth.winner
        table.add_row(*_cells(one, wins=wins), style="bold green" if wins else None)
    return table


def worth_figure(worth: Worth) -> go.Figure:
    """Draw what the winner gains over each rival, with intervals."""
    rivals = worth.rivals
    gains = [100 * one.gain.value for one in rivals]
    figure = go.Figure(
        go.Scatter(
            x=gains,
            y=[one.name for one in rivals],
            mode="markers",
            marker={"size": 11, "color": "#1f6feb"},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (one.gain.high - one.gain.value) for one in rivals],
                "arrayminus": [100 * (one.gain.value - one.gain.low) for one in rivals],
            },
            text=[one.sentence for one in rivals],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": "#57606a", "dash": "dash"})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="winner minus the other, mAP50-95 points (bars: 95 % interval)")
    lines = "<br>".join([worth.answer, *worth.caption.split(". "), worth.cost])
    figure.update_layout(
        title={"text": f"{worth.study}: was it worth it?", "subtitle": {"text": lines}},
        template="plotly_white",
        width=1000,
        height=260 + 40 * max(len(rivals), 2),
        margin={"t": 170},
    )
    return figure


def worth_section(worth: Worth) -> str:
    """Write the comparison as a section of Markdown."""
    rows = "\n".join(
        "| " + " | ".join(_cells(one, wins=one is worth.winner)) + " |"
        for one in (worth.winner, *worth.rivals)
    )
    return f"""\
## Was the search worth it?

{worth.answer} {worth.cost}

| network | latency ms (fresh <) | mAP50-95 (over images) | (over seeds) | gain, points [95 %] | \
the winner is |
|---|---|---|---|---|---|
{rows}

{worth.caption}
"""


def write_worth(worth: Worth, folder: Path) -> list[Path]:
    """Write the comparison as HTML and CSV; return the two files.

    Raises:
        StorageError: they cannot be written.
    """
    figure, table = folder / "worth.html", folder / "worth.csv"
    write_figure(worth_figure(worth), figure)
    try:
        worth.table.to_csv(table, index=False)
    except OSError as error:
        raise StorageError(f"{table} cannot be written: {error.strerror}.") from error
    return [figure, table]


def _cells(one: Rival, *, wins: bool) -> list[str]:
    return [
        f"winner: {one.name}" if wins else one.name,
        f"{one.latency_ms:.3f} (< {one.bound_ms:.3f}{'' if one.keeps else ', over'})",
        f"{one.over_images.value:.3f} {_interval(one.over_images)}",
        _interval(one.over_seeds),
        "" if wins else _points(one.gain),
        "" if wins else one.verdict,
    ]


def _interval(one: Estimate) -> str:
    return "-" if math.isnan(one.low) else f"[{one.low:.3f}, {one.high:.3f}]"


def _points(one: Estimate) -> str:
    if math.isnan(one.low):
        return f"{100 * one.value:+.1f} (no interval)"
    return f"{100 * one.value:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _confidently(confidence: float) -> str:
    if not confidence:
        return " is not known"
    return f" with {percent(confidence)} confidence, if its measurement settles"


def _without_nan(value: Any) -> Any:
    """Write what is unknown as JSON can."""
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
