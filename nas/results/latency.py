"""Latencies as tables: what a device was profiled for, and what measuring changed in a study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.table import Table

from nas.latency.table import LatencyTable
from nas.searcher.upgrade import Upgrade

__all__ = ["profile_table", "upgrade_summary", "upgrade_table"]

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


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAVY, title_justify="left", show_edge=False)
