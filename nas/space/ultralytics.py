"""A network as the layer-list YAML that YOLO users know: written, and read back.

The file holds rows `[from, repeats, module, arguments]` under `backbone` and `head`, `nc`, and
`activation`; beside these our own key `input`. Reading rebuilds the architecture from the rows: the
network that comes back from what was written has the same digest, and a file that somebody wrote
by hand is read by the same rules. The architecture's own YAML stays the source of truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.errors import ArchitectureError
from nas.space.architecture import Architecture
from nas.space.layers import HEADS, TRANSPOSED, UPSAMPLE, Layer, layers
from nas.space.record import Size
from nas.space.ultralytics_reader import architecture_of
from nas.space.ultralytics_rows import read_rows
from nas.space.yaml_file import parse_yaml

__all__ = ["from_ultralytics", "is_layer_list", "to_ultralytics"]

_THEIRS = {"Conv", "C2f", "SPPF", "SPP", UPSAMPLE, TRANSPOSED, "Concat", "Detect"}
_ACTIVATIONS = {"relu": "nn.ReLU()", "silu": "nn.SiLU()"}


def to_ultralytics(architecture: Architecture) -> str:
    """Write the layers of a network as a layer-list YAML.

    Source: the format of the model files that YOLOv8 and its relatives are configured by.
    """
    listed = layers(architecture)
    rows = [f"  - {_row(layer)}  # {_note(layer)}" for layer in listed]
    first = next(layer.index for layer in listed if not _in_backbone(layer))
    lines = [
        *_comments(architecture, listed),
        f"nc: {architecture.classes}",
        f"activation: {_ACTIVATIONS[architecture.activation]}",
        f"input: [{architecture.input[0]}, {architecture.input[1]}]  # height, width",
        "backbone:  # [from, repeats, module, arguments]",
        *rows[:first],
        "head:",
        *rows[first:],
    ]
    return "\n".join(lines) + "\n"


def from_ultralytics(
    text: str, name: str = "layer list", *, scale: str | None = None, size: Size | None = None
) -> Architecture:
    """Read a layer-list YAML: what `to_ultralytics` wrote, or a YOLO user's own file.

    Args:
        text: of the file.
        name: of the file, for messages.
        scale: which of the file's `scales` applies; by default the one that its key `scale` names,
            or else its first one.
        size: height and width of the input, pixels; by default what its key `input` says, or else
            640x640.

    Raises:
        ArchitectureError: it is not such a list, layers do not fit together, or the network has no
            place in our schema; says layer, line, and shapes where these do not meet.
    """
    document = parse_yaml(text, name, ArchitectureError)
    return architecture_of(read_rows(document, scale, size))


def is_layer_list(data: object) -> bool:
    """Whether the data of a YAML file are meant as a layer list, rather than as an architecture."""
    sections = ("backbone", "head")
    return isinstance(data, Mapping) and any(isinstance(data.get(key), list) for key in sections)


def _comments(architecture: Architecture, listed: tuple[Layer, ...]) -> list[str]:
    custom = sorted({layer.module for layer in listed} - _THEIRS)
    lines = [
        f"The layers of the network {architecture.digest}, derived from its architecture, which is",
        "the source of truth: keep its own YAML beside this file.",
    ]
    if custom:
        lines.append(f"Modules of our own: {', '.join(custom)}.")
    if any(width % 8 for width in _widths(listed)):
        lines.append("Its parser rounds widths up to multiples of 8; some here are none.")
    if any(side % 32 for side in architecture.input):
        lines.append("Upsampling crops to the size of the map that it meets.")
    return [f"# {line}" for line in lines]


def _widths(listed: tuple[Layer, ...]) -> list[int]:
    return [layer.shapes[0][0] for layer in listed if layer.module != "Concat"][:-1]


def _in_backbone(layer: Layer) -> bool:
    return any(part.startswith("backbone.") for part in layer.parts)


def _row(layer: Layer) -> str:
    first, *others = layer.sources
    near = first == layer.index - 1 and layer.module not in HEADS.values()
    sources = [-1 if near else first, *others]
    origin = sources[0] if len(sources) == 1 else sources
    arguments: tuple[Any, ...] = layer.arguments
    if layer.module in HEADS.values():
        arguments = ("nc", *arguments[1:])
    return _plain((origin, layer.repeats, layer.module, arguments))


def _plain(value: object) -> str:
    """Write a value in YAML's flow style; words stand without quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)


def _note(layer: Layer) -> str:
    shapes = ", ".join("x".join(map(str, shape)) for shape in layer.shapes)
    return f"{layer.index}: {layer.role}, {shapes}"
