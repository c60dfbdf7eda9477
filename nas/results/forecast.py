"""What a search or a training will take, as a table."""

from __future__ import annotations

from rich import box
from rich.table import Table

from nas.searcher.forecast import Forecast
from nas.searcher.room import Need
from nas.units import bytes_text

__all__ = ["duration_text", "forecast_table"]

_MINUTE_S, _HOUR_S = 60, 3600


def forecast_table(found: Forecast) -> Table:
    """Draw what will be done and how long it takes, then memory and disk, each with a verdict."""
    title = f"Nothing was spent. {found.what}, on this machine as busy as it is now:"
    table = Table(title=title, box=box.SIMPLE_HEAVY, title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("takes", justify="right", no_wrap=True)
    table.add_column("")
    for stage in found.stages:
        table.add_row(stage.name, duration_text(stage.seconds), stage.note)
    table.add_section()
    beside = " and ".join(found.left_out)
    table.add_row("Time", duration_text(found.seconds), f"without {beside}" if beside else "")
    room = found.room
    table.add_row("Memory", bytes_text(room.memory.needed), _verdict(room.memory))
    table.add_row("Disk", bytes_text(room.disk.needed), _verdict(room.disk))
    table.add_row(
        "", "", f"a checkpoint {bytes_text(room.checkpoint)}, images {bytes_text(room.resized)}"
    )
    return table


def duration_text(seconds: float) -> str:
    """Format a duration as a person says it: `"40 s"`, `"12 min"`, `"3.5 h"`."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"


def _verdict(need: Need) -> str:
    if need.free is None:
        return "nobody knows how much is free here"
    free = f"of {bytes_text(need.free)} free"
    return free if need.is_met else f"[bold red]{free}: it does not fit, and would be refused[/]"
