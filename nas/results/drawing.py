"""A network drawn as one SVG: what it consists of, how it is wired, and where its cost lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from xml.etree import ElementTree as ET

from nas.model.description import Description, LayerCost
from nas.results.description import (
    arguments_text,
    compact,
    percent,
    shape_text,
    totals_text,
)
from nas.results.diagram import Arrow, Band, Box, Diagram, Point, arrange
from nas.space.layers import IMAGE, Layer

__all__ = ["draw", "fitted", "text_width"]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SMALL, _NORMAL, _LARGE = 11.0, 12.0, 18.0
_BOX_HEIGHT, _NARROWEST, _WIDEST = 54.0, 150.0, 236.0
_INSET = 9.0  # between the border of a box and its text
_LINES = (16.5, 32.0, 46.5)  # baselines from the top of a box
_LINE_HEIGHT = 15.0
_TITLE_HEIGHT, _LEGEND_HEIGHT, _MARGIN = 66.0, 56.0, 20.0
_CORNER = 5.0  # radius at which arrows turn

_INK, _FAINT, _PAPER, _BORDER = "#1f2933", "#414d5a", "#ffffff", "#8a96a3"
_STRIPES = ("#f6f8fa", "#eceff3")
_COLD, _HOT = (255, 255, 255), (255, 163, 72)  # of a box without MACs, and of the dearest
_ATTENTION = "#8250df"
_LEVELS = ("#57606a", "#8a5a2b", "#b35900", "#1a7f37", "#0969da", "#bf3989")  # image, P1..P5

_TIMES = "\N{MULTIPLICATION SIGN}"
_WIDTHS = {
    character: width
    for characters, width in (
        ("ijlI.,:;|' ", 0.36),
        ("!()[]-frt/·", 0.45),
        ("BPSZ", 0.7),
        ("wOQGDNHUAVXYCRK#&<>^~=+" + _TIMES, 0.84),
        ("mMW@%…", 1.0),
    )
    for character in characters
}  # in ems, those of DejaVu Sans rounded up: the widest font that the list above may end in


def draw(description: Description, name: str = "") -> str:
    """Draw a network as a self-contained SVG document.

    Args:
        description: of the network.
        name: heads the drawing, together with the digest.
    """
    layers = tuple(cost.layer for cost in description.layers)
    size = _box_width(layers), _BOX_HEIGHT
    diagram = arrange(layers, description.architecture.input, size)
    titles = _titles(description, name)
    width = max(diagram.width, *(text_width(t.text, t.size, bold=t.bold) + 40 for t in titles))
    root = _page(width, _TITLE_HEIGHT + diagram.height + _LEGEND_HEIGHT, titles[0].text)
    for line in titles:
        _write_text(root, line)
    graph = _group(root, 0, _TITLE_HEIGHT)
    _write_bands(graph, diagram, description.architecture.input, width)
    _write_arrows(graph, diagram, _source_levels(diagram))
    _write_boxes(graph, diagram, description)
    _write_legend(_group(root, 0, _TITLE_HEIGHT + diagram.height), description)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Estimate from above the width of a text in pixels, in a font of so many pixels."""
    return sum(_WIDTHS.get(c, 0.65) for c in text) * size * (1.12 if bold else 1.0)


def fitted(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """Return a text that is no wider than so many pixels, cut off with an ellipsis if need be."""
    if text_width(text, size, bold=bold) <= width:
        return text
    while text and text_width(text + "…", size, bold=bold) > width:
        text = text[:-1].rstrip(" ,")
    return text + "…"


# ---- Page ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """A line of text; `anchor` is `start`, `middle` or `end`."""

    x: float
    y: float
    text: str
    size: float = _SMALL
    bold: bool = False
    fill: str = _INK
    anchor: str = "start"


def _page(width: float, height: float, title: str) -> ET.Element:
    size = {"width": _number(width), "height": _number(height)}
    view = f"0 0 {size['width']} {size['height']}"
    namespace = "http://www.w3.org/2000/svg"
    root = ET.Element("svg", {"xmlns": namespace, **size, "viewBox": view, "font-family": _FONT})
    ET.SubElement(root, "title").text = title
    ET.SubElement(root, "rect", {**size, "fill": _PAPER})
    definitions = ET.SubElement(root, "defs")
    for level, colour in enumerate(_LEVELS):
        _define_arrowhead(definitions, f"head-{level}", colour)
    return root


def _define_arrowhead(definitions: ET.Element, name: str, colour: str) -> None:
    marker = {"id": name, "viewBox": "0 0 8 8", "refX": "7.5", "refY": "4", "orient": "auto"}
    size = {"markerUnits": "userSpaceOnUse", "markerWidth": "8", "markerHeight": "8"}
    head = ET.SubElement(definitions, "marker", marker | size)
    ET.SubElement(head, "path", {"d": "M0 0.5 L8 4 L0 7.5 Z", "fill": colour})


def _titles(description: Description, name: str) -> tuple[_Text, _Text]:
    digest = description.architecture.digest
    heading = f"{name} · {digest}" if name else f"Network {digest}"
    return (
        _Text(_MARGIN, 30, heading, _LARGE, bold=True),
        _Text(_MARGIN, 51, totals_text(description), _NORMAL, fill=_FAINT),
    )


def _write_text(parent: ET.Element, text: _Text) -> None:
    attributes = {
        "x": _number(text.x),
        "y": _number(text.y),
        "font-size": _number(text.size),
        "fill": text.fill,
    }
    if text.bold:
        attributes["font-weight"] = "600"
    if text.anchor != "start":
        attributes["text-anchor"] = text.anchor
    ET.SubElement(parent, "text", attributes).text = text.text


def _group(parent: ET.Element, x: float, y: float, **data: str) -> ET.Element:
    attributes = {"transform": f"translate({_number(x)} {_number(y)})"} if x or y else {}
    return ET.SubElement(parent, "g", attributes | data)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


# ---- Bands and arrows ----------------------------------------------------------------------------


def _write_bands(
    parent: ET.Element, diagram: Diagram, image: tuple[int, int], width: float
) -> None:
    for number, band in enumerate(diagram.bands):
        place = {"y": _number(band.y), "width": _number(width), "height": _number(band.height)}
        ET.SubElement(parent, "rect", {"x": "0", **place, "fill": _STRIPES[number % 2]})
        for line in _band_label(band, image):
            _write_text(parent, line)
    for column in diagram.columns:
        middle = column.x + column.width / 2
        _write_text(parent, _Text(middle, 17, column.title, _NORMAL, bold=True, anchor="middle"))


def _band_label(band: Band, image: tuple[int, int]) -> Iterator[_Text]:
    height, width = (-(-side >> band.level) for side in image)
    name = f"P{band.level}" if band.level else "Image"
    y = band.y + band.height / 2 - (4 if band.level else -4)
    yield _Text(_MARGIN, y, name, 15, bold=True, fill=_level_colour(band.level))
    if band.level:
        yield _Text(_MARGIN, y + 15, f"stride {2**band.level}", fill=_FAINT)
        yield _Text(_MARGIN, y + 29, shape_text((height, width)), fill=_FAINT)


def _level_colour(level: int) -> str:
    return _LEVELS[min(level, len(_LEVELS) - 1)]


def _source_levels(diagram: Diagram) -> dict[int, int]:
    """Return the level of the band that each box begins in."""
    return {
        box.layer: next(b.level for b in reversed(diagram.bands) if b.y <= box.y)
        for box in diagram.boxes
    }


def _write_arrows(parent: ET.Element, diagram: Diagram, levels: dict[int, int]) -> None:
    """Draw the arrows of one source after another, each over a light seam: crossings read so."""
    sources = sorted({arrow.source for arrow in diagram.arrows})
    for source in sources:
        arrows = [arrow for arrow in diagram.arrows if arrow.source == source]
        for arrow in arrows:
            seam = {"d": _path(arrow.points), "fill": "none", "stroke": _STRIPES[0]}
            ET.SubElement(parent, "path", seam | {"stroke-width": "5"})
        for arrow in arrows:
            ET.SubElement(parent, "path", _arrow_attributes(arrow, levels[source]))


def _arrow_attributes(arrow: Arrow, level: int) -> dict[str, str]:
    level = min(level, len(_LEVELS) - 1)
    return {
        "class": "arrow",
        "data-from": str(arrow.source),
        "data-to": str(arrow.target),
        "d": _path(arrow.points),
        "fill": "none",
        "stroke": _LEVELS[level],
        "stroke-width": "1.6",
        "marker-end": f"url(#head-{level})",
    }


def _path(points: Sequence[Point]) -> str:
    """Write a polyline as a path with rounded corners."""
    steps = [f"M{_pair(points[0])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(
            _CORNER,
            *(hypot(a[0] - b[0], a[1] - b[1]) / 2 for a, b in pairwise((before, corner, after))),
        )
        steps.append(f"L{_pair(_towards(corner, before, radius))}")
        steps.append(f"Q{_pair(corner)} {_pair(_towards(corner, after, radius))}")
    return " ".join([*steps, f"L{_pair(points[-1])}"])


def _towards(start: Point, end: Point, distance: float) -> Point:
    share = distance / hypot(end[0] - start[0], end[1] - start[1])
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _pair(point: Point) -> str:
    return f"{_number(point[0])} {_number(point[1])}"


# ---- Boxes ---------------------------------------------------------------------------------------


def _box_width(layers: Sequence[Layer]) -> float:
    """Return the width at which most texts fit whole."""
    headings = (text_width(_heading(layer), _NORMAL, bold=True) for layer in layers)
    shapes = (text_width(shape_text(one.shapes[0]) + "  99.9 %", _SMALL) for one in layers)
    arguments = (text_width(line, _SMALL) for line in _head_arguments(layers[-1]))
    widest = max(*headings, *shapes, *arguments)
    return min(max(widest + 2 * _INSET, _NARROWEST), _WIDEST)


def _heading(layer: Layer) -> str:
    times = f" {_TIMES}{layer.repeats}" if layer.repeats > 1 else ""
    return f"{layer.index} {layer.module}{times}"


def _write_boxes(parent: ET.Element, diagram: Diagram, description: Description) -> None:
    costs = {cost.layer.index: cost for cost in description.layers}
    dearest = max(1, *(cost.macs for cost in description.layers))
    for box in diagram.boxes:
        group = _group(parent, box.x, box.y, **{"class": "layer", "data-layer": str(box.layer)})
        if box.layer == IMAGE:
            _write_image(group, box, description.architecture.input)
            continue
        cost = costs[box.layer]
        ET.SubElement(group, "title").text = _hover(cost, description.macs)
        heat, share = _heat(cost.macs / dearest), percent(cost.macs, description.macs)
        if len(cost.layer.shapes) > 1:
            _write_head(group, box, cost.layer, _inputs(cost.layer, box, diagram), heat, share)
        else:
            _write_layer(group, box, cost.layer, heat, share if cost.macs else "")


def _write_frame(group: ET.Element, box: Box, fill: str) -> None:
    frame = {"width": _number(box.width), "height": _number(box.height), "rx": "5", "fill": fill}
    ET.SubElement(group, "rect", frame | {"stroke": _BORDER})


def _write_image(group: ET.Element, box: Box, image: tuple[int, int]) -> None:
    _write_frame(group, box, _PAPER)
    middle = box.width / 2
    _write_text(group, _Text(middle, 24, "image", _NORMAL, bold=True, anchor="middle"))
    _write_text(group, _Text(middle, 40, shape_text((3, *image)), fill=_FAINT, anchor="middle"))


def _write_layer(group: ET.Element, box: Box, layer: Layer, heat: str, share: str) -> None:
    _write_frame(group, box, heat)
    if _is_attention(layer):
        stripe = {"width": "5", "height": _number(box.height), "rx": "2.5"}
        ET.SubElement(group, "rect", stripe | {"fill": _ATTENTION})
    room, end = box.width - 2 * _INSET, box.width - _INSET
    heading = fitted(_heading(layer), room, _NORMAL, bold=True)
    arguments = fitted(arguments_text(layer.arguments), room, _SMALL)
    _write_text(group, _Text(_INSET, _LINES[0], heading, _NORMAL, bold=True))
    _write_text(group, _Text(_INSET, _LINES[1], arguments, fill=_FAINT))
    _write_text(group, _Text(_INSET, _LINES[2], shape_text(layer.shapes[0])))
    _write_text(group, _Text(end, _LINES[2], share, bold=True, anchor="end"))


def _is_attention(layer: Layer) -> bool:
    return any(part.startswith("neck.attention.") for part in layer.parts)


def _inputs(layer: Layer, box: Box, diagram: Diagram) -> list[float]:
    """Return where the arrows to a layer end, from the top of its box, in the sources' order."""
    ends = {a.source: a.points[-1][1] - box.y for a in diagram.arrows if a.target == layer.index}
    return [ends[source] for source in layer.sources]


def _write_head(
    group: ET.Element, box: Box, layer: Layer, inputs: Sequence[float], heat: str, share: str
) -> None:
    """Write shapes where they come in and the rest where there is room; only that is coloured."""
    edges = sorted([0.0, *inputs, box.height])
    top, bottom = max(pairwise(edges), key=lambda gap: gap[1] - gap[0])
    fitting = int((bottom - top - 2 * _LINE_HEIGHT) / _LINE_HEIGHT)
    lines = [_heading(layer), share, *_head_arguments(layer)][:fitting]
    height = _LINE_HEIGHT * len(lines) + _INSET
    y = (top + bottom - height) / 2
    block = {"y": _number(y), "width": _number(box.width), "height": _number(height)}
    _write_frame(group, box, _PAPER)
    ET.SubElement(group, "rect", block | {"fill": heat, "stroke": _BORDER})
    for number, line in enumerate(lines):
        size, bold = (_NORMAL if number == 0 else _SMALL), number < 2
        text = fitted(line, box.width - 2 * _INSET, size, bold=bold)
        at = y + _LINE_HEIGHT * (number + 1)
        _write_text(group, _Text(_INSET, at, text, size, bold, _INK if bold else _FAINT))
    for at, shape in zip(inputs, layer.shapes, strict=True):
        _write_text(group, _Text(_INSET, at + 4, shape_text(shape)))


def _head_arguments(layer: Layer) -> Iterator[str]:
    for argument in layer.arguments:
        if isinstance(argument, Mapping):
            yield from (arguments_text(({key: value},)) for key, value in argument.items())
        else:
            yield arguments_text((argument,))


def _hover(cost: LayerCost, all_macs: int) -> str:
    """Say everything of a layer, for the pointer that rests on it."""
    layer = cost.layer
    sources = ", ".join("image" if s == IMAGE else str(s) for s in layer.sources)
    return (
        f"{_heading(layer)} ({arguments_text(layer.arguments)}) from {sources}: {layer.role}. "
        f"{cost.parameters:,} parameters, {compact(cost.macs)} MACs "
        f"({percent(cost.macs, all_macs)})"
    )


def _write_legend(parent: ET.Element, description: Description) -> None:
    dearest = max(cost.macs for cost in description.layers)
    x = _MARGIN
    for text in ("share of all MACs:", "0 %"):
        _write_text(parent, _Text(x, 32, text, fill=_FAINT))
        x += text_width(text, _SMALL) + 8
    for step in range(11):
        place = {"x": _number(x), "y": "22", "width": "14", "height": "13"}
        ET.SubElement(parent, "rect", place | {"fill": _heat(step / 10)})
        x += 14
    swatches = {"x": _number(x - 154), "y": "22", "width": "154", "height": "13", "fill": "none"}
    ET.SubElement(parent, "rect", swatches | {"stroke": _BORDER})
    text = percent(dearest, description.macs)
    _write_text(parent, _Text(x + 8, 32, text, fill=_FAINT))
    x += text_width(text, _SMALL) + 40
    if any(_is_attention(cost.layer) for cost in description.layers):
        stripe = {"x": _number(x), "y": "20", "width": "5", "height": "17", "rx": "2.5"}
        ET.SubElement(parent, "rect", stripe | {"fill": _ATTENTION})
        _write_text(parent, _Text(x + 12, 32, "attention", fill=_FAINT))
        x += text_width("attention", _SMALL) + 44
    text = "arrows have the colour of the level that they come from"
    _write_text(parent, _Text(x, 32, text, fill=_FAINT))


def _heat(share: float) -> str:
    """Return the colour of a box by its MACs, as a share of the dearest one's."""
    mixed = (round(a + (b - a) * share) for a, b in zip(_COLD, _HOT, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
