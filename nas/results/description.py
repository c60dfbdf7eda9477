"""A description of a network as a person reads it in the terminal, and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from nas.model.description import Description, LayerCost
from nas.space.layers import IMAGE

__all__ = [
    "arguments_text",
    "compact",
    "description_facts",
    "description_rows",
    "description_table",
    "percent",
    "shape_text",
    "totals_text",
]

_TIMES = " \N{MULTIPLICATION SIGN} "
_UNITS = (" k", " M", " G", " T")


def description_table(description: Description, name: str = "") -> Table:
    """List every layer: what it takes, what it puts out (C x H x W), and what it costs.

    Parameters are as trained, MACs as deployed; the share is that of all MACs.

    Args:
        description: of the network.
        name: heads the table; the digest does if there is none.
    """
    table = Table(
        title=Text(name or f"Network {description.architecture.digest}", style="bold"),
        caption=totals_text(description),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_footer=True,
        pad_edge=False,
    )
    total = f"{description.parameters:,}", compact(description.macs), "100 %"
    for column in ("#", "from", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("module", "total", no_wrap=True)
    table.add_column("arguments")
    table.add_column("output " + _TIMES.join("CHW"), justify="right", no_wrap=True)
    for column, footer in zip(("parameters", "MACs", "share"), total, strict=True):
        table.add_column(column, footer, justify="right", no_wrap=True)
    table.add_column("role")
    for cost in description.layers:
        table.add_row(*map(Text, _cells(cost, description.macs)))
    return table


def description_rows(description: Description) -> list[dict[str, Any]]:
    """Return every layer as plain data, for JSON or a data frame; -1 stands for the image."""
    return [
        {
            "index": cost.layer.index,
            "from": list(cost.layer.sources),
            "repeats": cost.layer.repeats,
            "module": cost.layer.module,
            "arguments": _plain(cost.layer.arguments),
            "output": _plain(cost.layer.shapes),
            "parameters": cost.parameters,
            "deployed_parameters": cost.deployed,
            "macs": cost.macs,
            "role": cost.layer.role,
        }
        for cost in description.layers
    ]


def description_facts(description: Description) -> dict[str, Any]:
    """Return the totals and the layers as plain data, for JSON."""
    return {
        "digest": description.architecture.digest,
        "input": list(description.architecture.input),
        "classes": description.architecture.classes,
        "parameters": description.parameters,
        "deployed_parameters": description.deployed,
        "macs": description.macs,
        "gflops": description.gflops,
        "anchors": description.anchors,
        "layers": description_rows(description),
    }


def totals_text(description: Description) -> str:
    """Say the totals in one line."""
    image = shape_text((3, *description.architecture.input))
    return (
        f"input {image} · {len(description.layers)} layers · "
        f"{description.parameters:,} parameters ({description.deployed:,} deployed) · "
        f"{compact(description.macs)} MACs = {description.gflops:.3g} GFLOPs (2 per MAC) · "
        f"{description.anchors:,} anchors"
    )


def compact(number: int) -> str:
    """Write a count with three digits and a unit: `999`, `1.23 k`, `45.6 M`, `789 G`."""
    if number < 1000:
        return str(number)
    value = float(number)
    for unit in _UNITS:
        value /= 1000
        text = f"{value:#.3g}"
        if "e" not in text:
            return text.removesuffix(".") + unit
    return f"{value:,.0f}{_UNITS[-1]}"


def percent(part: int, whole: int) -> str:
    """Write a share: `12.3 %`, `<0.1 %` for a little, `0 %` for nothing."""
    share = 100 * part / whole if whole else 0.0
    if part and share < 0.05:
        return "<0.1 %"
    return f"{share:.1f} %" if part else "0 %"


def shape_text(shape: tuple[int, ...]) -> str:
    """Write channels, height and width, or height and width."""
    return _TIMES.join(map(str, shape))


def arguments_text(arguments: tuple[Any, ...]) -> str:
    """Write the arguments of a layer as one would call it."""
    return ", ".join(map(_argument, arguments))


def _argument(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_argument(item)}" for key, item in value.items())
    return str(value)


def _cells(cost: LayerCost, all_macs: int) -> tuple[str, ...]:
    layer = cost.layer
    sources = ", ".join("image" if s == IMAGE else str(s) for s in layer.sources)
    return (
        str(layer.index),
        sources,
        str(layer.repeats),
        layer.module,
        arguments_text(layer.arguments),
        "\n".join(map(shape_text, layer.shapes)),
        f"{cost.parameters:,}",
        compact(cost.macs),
        percent(cost.macs, all_macs),
        layer.role,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
