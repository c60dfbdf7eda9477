"""Latencies as tables: what a device was profiled for, and what measuring changed in a study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich import box
from rich.table import Table

from nas.latency.latency import ESTIMATED_LEVEL, MEASURED_LEVEL
from nas.latency.table import LatencyTable
from nas.latency.timing import Timing
from nas.searcher.measuring import Measured
from nas.searcher.upgrade import Upgrade
from nas.units import percent

__all__ = ["levels", "measured_lines", "profile_table", "upgrade_summary", "upgrade_table"]

_MOST_ROWS = 20


def profile_table(tables: Iterable[LatencyTable], folder: Path) -> Table:
    """Draw how well each latency table predicts the networks in it, each left out in turn."""
    drawn = _table(f"Latency tables in {folder}")
    drawn.add_column("precision")
    for column in ("networks", "ms", "left out: mean error", "median", "rank correlation", "held"):
        drawn.add_column(column, justify="right")
    for table in tables:
        error = table.predictor().leave_one_out()
        times = [row.ms for row in table.rows]
        drawn.add_row(
            table.environment.precision,
            str(len(times)),
            f"{min(times):.3f} to {max(times):.3f}",
            f"{error.mape:.1%}",
            f"{error.median:.1%}",
            f"{error.spearman:.3f}",
            f"{error.coverage:.0%} of 95 %",
        )
    return drawn


def upgrade_table(upgrade: Upgrade) -> Table:
    """Draw what was told before, and what was measured, for the most accurate candidates."""
    drawn = _table(f"Latencies of {upgrade.study}, ms")
    for column in ("trial", "precision", "before", "source", "measured [95 %]", "change"):
        drawn.add_column(column, justify="right")
    for row in upgrade.changes.head(_MOST_ROWS).to_dict("records"):
        drawn.add_row(
            str(row["trial"]),
            str(row["precision"]),
            f"{row['before_ms']:.3f} [{row['before_low_ms']:.3f}, {row['before_high_ms']:.3f}]",
            str(row["source"]),
            f"{row['ms']:.3f} [{row['low_ms']:.3f}, {row['high_ms']:.3f}]",
            f"{row['ms'] / row['before_ms'] - 1:+.0%}",
        )
    return drawn


def upgrade_summary(upgrade: Upgrade) -> str:
    """Say in a line what measuring changed."""
    if upgrade.changes.empty:
        return f"Every latency of {upgrade.study} was measured already."
    failed = f" {upgrade.failed} could not be measured." if upgrade.failed else ""
    return (
        f"{len(upgrade.changes)} latencies of {upgrade.study} are measured now. Before, their "
        f"median error was {upgrade.median_error:.0%}, and {upgrade.held:.0%} lay within their "
        f"intervals.{failed}"
    )


def measured_lines(measured: Measured) -> Iterator[str]:
    """Say what was measured, how sure it is, and under which conditions."""
    latency, timing = measured.latency, measured.timing
    yield (
        f"{latency.ms:.4f} ms, {percent(latency.level)} interval [{latency.low_ms:.4f}, "
        f"{latency.high_ms:.4f}], {latency.source}"
    )
    if timing.p50_ms and timing.p90_ms and timing.p99_ms:
        yield (
            f"  runs: p50 {timing.p50_ms:.4f}, p90 {timing.p90_ms:.4f}, p99 {timing.p99_ms:.4f} ms "
            f"({timing.runs} runs)"
        )
    batch = latency.environment.batch
    if batch > 1:
        yield f"  a run takes {batch} images: {1000 * batch / latency.ms:.1f} images/s"
    if timing.parts_ms:
        parts = ", ".join(f"{name} {ms:.4f} ms" for name, ms in timing.parts_ms.items())
        yield f"  parts, each by itself: {parts}"
    yield from _doubts(timing)
    for name, value in latency.environment.as_dict().items():
        yield f"  {name}: {value}"


def levels(sources: Iterable[str]) -> str:
    """Say what the intervals of latencies from these sources hold: those of estimates hold less."""
    found = set(sources)
    if "estimated" not in found:
        return percent(MEASURED_LEVEL)
    mixed = "" if len(found) == 1 else f"{percent(MEASURED_LEVEL)}, estimates "
    return f"{mixed}{percent(ESTIMATED_LEVEL)}"


def _doubts(timing: Timing) -> Iterator[str]:
    """Say what may be wrong with a figure."""
    if not timing.converged:
        yield f"  NOT CONVERGED: the interval is wider than wanted ({timing.half_width:.1%})"
    if timing.disturbed:
        yield f"  DISTURBED: others kept {timing.other_load:.1f} CPUs, which the wall clock counts"
    if timing.throttled:
        yield "  THROTTLED: the device did not keep its clock"
    for reason, blocks in timing.rejected_by.items():
        yield f"  {blocks} blocks were thrown away: {reason}"


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAVY, title_justify="left", show_edge=False)
