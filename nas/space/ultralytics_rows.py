"""The form of a layer-list YAML: its top-level keys, and its rows `[from, repeats, module, args]`.

Nothing here knows what a module does. What a row takes from is resolved to absolute indices, which
lie before it: a list has no cycles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nas.errors import ArchitectureError, nearest
from nas.space.layers import IMAGE
from nas.space.record import Size
from nas.space.yaml_file import Document

__all__ = ["LARGEST", "LayerFile", "Row", "Scale", "read_rows"]

LARGEST = 1_000_000
"""No number of a list is larger: this keeps arithmetic on damaged files finite."""

_SIDE = 640  # what YOLO trains at when nobody says otherwise
_MULTIPLES = ("depth_multiple", "width_multiple", "max_channels")
_KEYS = ("nc", "names", "ch", "activation", "input", "scale", "scales", *_MULTIPLES)
_SECTIONS = ("backbone", "head")
_ACTIVATION = re.compile(r"(?:torch\.)?nn\.(SiLU|ReLU)\((?:inplace=(?:True|False))?\)")


class Scale(NamedTuple):
    """What a compound scale does to a list.

    Attributes:
        depth: repeats above 1 are multiplied by this and rounded, to at least 1.
        width: channels are multiplied by this and rounded up to a multiple of 8.
        max_channels: channels are cut to this first.
    """

    depth: float
    width: float
    max_channels: float

    def repeats(self, count: int) -> int:
        """Return how often a row of `count` repeats really is repeated."""
        return max(round(count * self.depth), 1) if count > 1 else count

    def channels(self, count: int) -> int:
        """Return how many channels a row of `count` really has."""
        return math.ceil(min(count, self.max_channels) * self.width / 8) * 8


@dataclass(frozen=True)
class Row:
    """One row as the file states it.

    Attributes:
        index: its place in the list, from 0, counted through `backbone` and `head`.
        where: file and line, for messages.
        sources: absolute indices; `IMAGE` for the input.
        repeats: as written.
        module: as written.
        arguments: as written.
    """

    index: int
    where: str
    sources: tuple[int, ...]
    repeats: int
    module: str
    arguments: tuple[Any, ...]

    @property
    def label(self) -> str:
        """What a message calls it."""
        return f"layer {self.index} ({self.module}; {self.where})"

    def error(self, message: str, remedy: str = "") -> ArchitectureError:
        """Return the error that says what is wrong with it."""
        return ArchitectureError(f"L{self.label[1:]}: {message}.", remedy)


@dataclass(frozen=True)
class LayerFile:
    """A layer list whose form is right.

    Attributes:
        document: the file.
        rows: in order.
        size: height and width of the input, pixels.
        classes: what `nc` says, or None.
        activation: `relu` or `silu`.
        scale: what applies, or None.
    """

    document: Document
    rows: tuple[Row, ...]
    size: Size
    classes: int | None
    activation: str
    scale: Scale | None


def read_rows(document: Document, scale: str | None, size: Size | None) -> LayerFile:
    """Read the form of a list.

    Args:
        document: the file.
        scale: which of the file's `scales`; its own choice, or else the first one, if None.
        size: of the input; what the file says if None, or else 640x640.

    Raises:
        ArchitectureError: the form is broken; says layer and line.
    """
    known = (*_KEYS, *_SECTIONS)
    for key in document.data:
        if key not in known:
            hint = nearest(str(key), known)
            raise _error(
                document,
                str(key),
                f"unknown key {key!r}",
                (f"Did you mean {hint!r}? " if hint else "") + f"Known: {', '.join(known)}.",
            )
    if document.data.get("ch", 3) != 3:
        raise _error(document, "ch", f"images have 3 channels, got ch={document.data['ch']!r}")
    return LayerFile(
        document,
        _rows(document),
        _size(document) if size is None else size,
        _classes(document),
        _activation(document),
        _scale(document, scale),
    )


def _rows(document: Document) -> tuple[Row, ...]:
    stated: list[tuple[str, object]] = []
    for section in _SECTIONS:
        found = document.data.get(section)
        if not isinstance(found, list) or not found:
            raise _error(
                document,
                section,
                f"`{section}` must be a list of rows",
                "Write it as rows [from, repeats, module, args].",
            )
        paths = ((section, str(index)) for index in range(len(found)))
        stated += zip((document.where(path) for path in paths), found, strict=True)
    return tuple(_row(i, where, row, len(stated)) for i, (where, row) in enumerate(stated))


def _row(index: int, where: str, stated: object, count: int) -> Row:
    if not isinstance(stated, list) or len(stated) != 4:
        raise ArchitectureError(
            f"Layer {index} ({where}): a row is a list of four, got {_short(stated)}.",
            "Write [from, repeats, module, args].",
        )
    origin, repeats, module, arguments = stated
    if not isinstance(module, str):
        raise ArchitectureError(
            f"Layer {index} ({where}): a module is named by a word, got {_short(module)}."
        )
    row = Row(index, where, (), 1, module, ())
    if not _is_integer(repeats) or repeats < 1:
        raise row.error(f"repeats must be a positive integer, got {_short(repeats)}")
    if not isinstance(arguments, list):
        raise row.error(f"arguments must be a list, got {_short(arguments)}")
    sources = tuple(_source(row, each, count) for each in _origins(row, origin))
    return Row(index, where, sources, repeats, module, tuple(arguments))


def _origins(row: Row, origin: object) -> list[int]:
    origins: list[Any] = origin if isinstance(origin, list) else [origin]
    if not origins or not all(_is_integer(each) for each in origins):
        raise row.error(
            f"`from` must be a layer's index or a list of them, got {_short(origin)}",
            "-1 is the layer before.",
        )
    return origins


def _source(row: Row, origin: int, count: int) -> int:
    source = row.index + origin if origin < 0 else origin
    if source == IMAGE and row.index == 0:
        return IMAGE
    if not 0 <= source < count:
        raise row.error(
            f"takes from layer {source}, which does not exist: there are layers 0 to {count - 1}"
        )
    if source == row.index:
        raise row.error("takes from itself: that is a cycle", "-1 is the layer before.")
    if source > row.index:
        raise row.error(
            f"takes from layer {source}, which comes after it: that is a cycle",
            "A layer takes from layers before it.",
        )
    return source


def _size(document: Document) -> Size:
    stated = document.data.get("input", _SIDE)
    sides = stated if isinstance(stated, list) else [stated, stated]
    if len(sides) != 2 or not all(_is_integer(side) for side in sides):
        raise _error(document, "input", f"`input` is [height, width], got {_short(stated)}")
    return sides[0], sides[1]


def _classes(document: Document) -> int | None:
    classes = document.data.get("nc")
    if classes is not None and (not _is_integer(classes) or classes < 1):
        raise _error(document, "nc", f"`nc` is the number of classes, got {_short(classes)}")
    return classes


def _activation(document: Document) -> str:
    stated = document.data.get("activation", "nn.SiLU()")
    found = _ACTIVATION.fullmatch(stated) if isinstance(stated, str) else None
    if found is None:
        raise _error(
            document,
            "activation",
            f"`activation` must be nn.SiLU() or nn.ReLU(), got {_short(stated)}",
        )
    return found[1].lower()


def _scale(document: Document, name: str | None) -> Scale | None:
    scales = document.data.get("scales")
    if scales is None:
        return _multiples(document, name)
    if not isinstance(scales, Mapping) or not scales:
        raise _error(document, "scales", f"`scales` must be a mapping, got {_short(scales)}")
    stated = document.data.get("scale")
    chosen = name or (next(iter(scales)) if stated is None else stated)
    if not isinstance(chosen, str) or chosen not in scales:
        known = ", ".join(str(each) for each in scales)
        raise _error(document, "scales", f"there is no scale {_short(chosen)}", f"Known: {known}.")
    values = scales[chosen]
    if not isinstance(values, list) or len(values) != 3:
        raise _error(
            document,
            "scales",
            f"scale {chosen!r} must be [depth, width, max_channels], got {_short(values)}",
        )
    return _checked_scale(document, "scales", values)


def _multiples(document: Document, name: str | None) -> Scale | None:
    """Read the older form, in which a file holds one scale."""
    if name is not None:
        raise _error(document, "scales", f"the file has no scales, and {name!r} was asked for")
    given = [document.data.get(key) for key in _MULTIPLES]
    if all(value is None for value in given):
        return None
    depth, width, most = given
    values = [1.0 if depth is None else depth, 1.0 if width is None else width]
    return _checked_scale(document, "width_multiple", [*values, LARGEST if most is None else most])


def _checked_scale(document: Document, key: str, values: list[Any]) -> Scale:
    for value in values:
        if type(value) not in (int, float) or not 0 < value <= LARGEST:
            raise _error(document, key, f"a scale holds positive numbers, got {_short(value)}")
    return Scale(*values)


def _error(document: Document, key: str, message: str, remedy: str = "") -> ArchitectureError:
    return ArchitectureError(f"{document.where((key,))}: {message}.", remedy)


def _is_integer(value: object) -> bool:
    return type(value) is int and -LARGEST <= value <= LARGEST


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
