"""The registry of devices as a table: what each promises, and what can be measured here and now."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from nas.latency.detection import Attached
from nas.latency.hardware import Figure
from nas.latency.measurable import Measurable

__all__ = ["hardware_table"]

_FIGURES = {
    "GB": "memory_gb",
    "GB/s": "bandwidth_gbs",
    "fp32\nTFLOPS": "fp32_tflops",
    "fp16\nTFLOPS": "fp16_tensor_tflops",
    "int8\nTOPS": "int8_tensor_tops",
}


def hardware_table(rows: Iterable[Measurable], unknown: Iterable[Attached] = ()) -> Table:
    """Draw devices with their figures, whether they are attached, and what can be measured.

    Args:
        rows: as `nas.latency.measurable.measurable` gives them.
        unknown: as `nas.latency.measurable.unregistered` gives them; each gets a line of its own.
    """
    table = Table(title="Hardware", box=box.SIMPLE_HEAVY, title_justify="left", show_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("device")
    for heading in _FIGURES:
        table.add_column(heading, justify="right")
    table.add_column("attached")
    table.add_column("measurable here", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row), style=_style(row))
    table.caption = "?: no page that states the figure was read"
    for device in unknown:
        blanks = [""] * len(_FIGURES)
        hint = "no entry in the registry: describe it in YAML, --hardware my_device.yaml"
        table.add_row("?", device.text, *blanks, "yes", hint, style="yellow")
    return table


def _cells(row: Measurable) -> list[str]:
    sheet = row.hardware.datasheet
    figures = [_figure(getattr(sheet, field)) for field in _FIGURES.values()]
    attached = "yes" if row.attached else "no"
    return [row.hardware.name, row.hardware.description, *figures, attached, _here(row)]


def _here(row: Measurable) -> str:
    """List runtimes with their precisions, and the reasons for what is missing."""
    if not row.here:
        return row.reason
    lines = []
    for one in row.abilities:
        if one.precisions:
            lines.append(f"{one.runtime} {one.version}: {', '.join(one.precisions)}")
        if one.reason:
            lines.append(one.reason)
    return "\n".join(lines)


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{figure.value:g}" if figure.verified else f"{figure.value:g}?"


def _style(row: Measurable) -> str | None:
    if row.here:
        return "bold green"
    return "yellow" if row.attached else "dim"
