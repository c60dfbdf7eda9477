"""What a person sees in the terminal: live progress, and the front as a table."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Self

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from nas.model.detector import profile
from nas.results.delivery import Delivered
from nas.results.latency import levels
from nas.searcher.commands import command_line, command_on
from nas.searcher.progress import Status
from nas.searcher.request import Request
from nas.searcher.result import StudyResult
from nas.units import percent

__all__ = [
    "LiveProgress",
    "delivered_panel",
    "exchange_line",
    "front_table",
    "next_commands",
    "stopped_line",
]

_PLAIN_STEPS = 10  # lines per stage where the output is not a terminal


class LiveProgress:
    """A listener that draws the stages, the counters and the front so far.

    On a terminal it redraws in place; elsewhere it prints about ten lines per stage, so a log file
    stays readable.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._task: TaskID | None = None
        self._status: Status | None = None
        self._name, self._total, self._printed = "", 0, 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._console.is_terminal:
            self._console.print(self._progress)  # what was done stays on the screen

    def stage(self, name: str, total: int) -> None:
        """Begin a line."""
        self._finish()
        self._name, self._total, self._printed = name, total, 0
        self._task = self._progress.add_task(name, total=total or None, note="")
        if not self._console.is_terminal:
            self._console.print(name + (f" ({total})" if total else ""))
        self._draw()

    def advance(self, done: int, note: str = "") -> None:
        """Move the bar."""
        if self._task is None:
            return
        self._progress.update(self._task, completed=done, note=note)
        if not self._console.is_terminal and self._is_time_to_print(done):
            self._console.print(f"  {self._name}: {done}/{self._total} {note}".rstrip())
        self._draw()

    def say(self, text: str, *, warning: bool = False) -> None:
        """Print a line above the live display."""
        style = "yellow" if warning else "default"
        self._console.print(Text(("warning: " if warning else "") + text, style=style))

    def status(self, status: Status) -> None:
        """Show counters and the front."""
        self._status = status
        self.advance(status.evaluated, _counters(status))

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self._total or 1, total=self._total or 1)
            self._progress.stop_task(self._task)

    def _is_time_to_print(self, done: int) -> bool:
        tenth = done * _PLAIN_STEPS // max(self._total, 1)
        due = tenth > self._printed
        self._printed = max(self._printed, tenth)
        return due

    def _draw(self) -> None:
        parts: list[RenderableType] = [self._progress]
        if self._status is not None and self._status.front:
            parts.append(_front_so_far(self._status))
        self._live.update(Group(*parts))


def _counters(status: Status) -> str:
    best = (
        f", best {status.best.map50_95:.3f} at {status.best.latency_ms:.3f} ms"
        if status.best
        else ""
    )
    return (
        f"{status.per_hour:.0f} candidates/h, {status.over_budget} over budget, "
        f"{status.repeated} repeated{best}"
    )


def _front_so_far(status: Status) -> Table:
    table = Table(title="Front so far", box=box.SIMPLE, title_justify="left")
    for column in ("trial", "mAP50-95", "latency"):
        table.add_column(column, justify="right")
    for member in status.front:
        table.add_row(str(member.trial), f"{member.map50_95:.3f}", f"{member.latency_ms:.3f} ms")
    return table


def front_table(front: pd.DataFrame, title: str, winner: int | None = None) -> Table:
    """Draw a front: every number with its interval and its source.

    Args:
        front: as `nas.searcher.loop.StudyResult.front` gives it.
        title: printed above.
        winner: number of the trial to mark.
    """
    table = Table(title=title, box=box.SIMPLE_HEAVY, title_justify="left", show_edge=False)
    for column in (
        "",
        "trial",
        "mAP50-95",
        "mAP50",
        f"latency ms [{levels(front['latency_source'])}]",
        "source",
        "score",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("best for lambda", "parameters", "MACs", "precision", "as in fp32"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in front.to_dict("records"):
        chosen = row["trial"] == winner
        table.add_row(
            "★" if chosen else "",
            str(row["trial"]),
            _accuracy(row["map50_95"], row["map50_95_low"], row["map50_95_high"]),
            f"{row['map50']:.3f}",
            f"{row['latency_ms']:.3f} [{row['latency_low_ms']:.3f}, {row['latency_high_ms']:.3f}]",
            str(row["latency_source"]),
            f"{row['score']:.3f}",
            _lambdas(row["lambda_low"], row["lambda_high"]),
            f"{row['parameters'] / 1e3:.0f} k",
            f"{row['macs'] / 1e6:.1f} M",
            str(row["precision"]),
            "-" if pd.isna(row["agreement"]) else f"{row['agreement']:.0%}",
            style="bold green" if chosen else None,
        )
    return table


def stopped_line(result: StudyResult) -> str:
    """Say how many candidates have an estimate in the place of an accuracy; nothing if none."""
    kinds = Counter(
        f"on {row['estimate_images']:.0f} validation images"
        if row["fidelity"] == "subset"
        else f"after {row['estimate_iterations']:.0f} steps of training"
        for row in result.stopped.to_dict("records")
    )
    said = [f"{count} {kind}" for kind, count in kinds.items()]
    if not said:
        return ""
    return f"Stopped early, with an estimate that stands on no front: {', '.join(said)}."


def _lambdas(low: float, high: float) -> str:
    """Write for which lambda a candidate has the best mAP - lambda x latency."""
    if pd.isna(low):
        return "none"
    return f"{low:.3g} and more" if math.isinf(high) else f"{low:.3g} to {high:.3g}"


def exchange_line(result: StudyResult) -> str:
    """Say at which lambda the best candidate sits at the budget."""
    rate = result.exchange_rate
    return (
        f"lambda auto: {rate:.4g} mAP per ms. Up to it, mAP - lambda x latency is the best at "
        f"{result.budget}; that is what the last of the budget buys."
    )


def delivered_panel(delivered: Delivered) -> Panel:
    """Draw what was delivered, every number with its interval and its source."""
    bundle = delivered.bundle
    counts = profile(bundle.candidate.architecture)
    table = Table.grid(padding=(0, 2))
    latency = bundle.latency
    table.add_row(
        "latency",
        f"{_latency(latency.ms, latency.low_ms, latency.high_ms)} ({percent(latency.level)}), "
        f"{latency.source} on this graph, "
        f"{latency.environment.runtime} {latency.environment.precision}, "
        f"{latency.environment.device}",
    )
    for one in bundle.accuracies:
        table.add_row(
            f"mAP50-95, {one.split}",
            f"{_accuracy(one.map50_95, one.low, one.high)}, mAP50 {one.map50:.3f}; {one.weights} "
            f"weights, {one.images} images, scored on the {one.artifact}",
        )
    table.add_row("engine", str(bundle.accuracies[-1].agreement or "compared with nothing"))
    height, width = bundle.candidate.architecture.input
    table.add_row(
        "network",
        f"{counts.parameters:,} parameters, {counts.macs / 1e6:.1f} M MACs at {height} x {width}",
    )
    table.add_row("origin", bundle.provenance.origin.replace("`", ""))
    table.add_row("files", f"{delivered.folder}/: architecture.yaml, model.onnx, card.md")
    keeps = "keeps" if latency.source == "measured" else f"is {latency.source} to keep"
    budget = f" {keeps} {bundle.provenance.budget}" if bundle.provenance.budget else ""
    trial = "" if delivered.trial is None else f" (trial {delivered.trial})"
    title = f"Detector {bundle.candidate.architecture.digest}{trial}{budget}"
    return Panel(table, title=title, title_align="left", border_style="green")


def next_commands(request: Request, folder: Path) -> str:
    """List what a user may want to type next.

    Args:
        request: of a study with a name.
        folder: of what was delivered.
    """
    workspace = request.workspace.root
    commands = (
        command_line("measure", str(folder / "model.onnx"), workspace=workspace),
        *(command_on(request, name) for name in ("front", "explain", "trust", "worth")),
        command_on(request, "export", "--trial", "N"),
        command_line("dashboard", storage=request.storage, workspace=workspace),
    )
    return "\n  ".join(["Next:", *commands])


def _latency(ms: float, low_ms: float, high_ms: float) -> str:
    return f"{ms:.3f} [{low_ms:.3f}, {high_ms:.3f}] ms"


def _accuracy(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
