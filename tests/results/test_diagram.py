from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.results.diagram import Arrow, Box, Diagram, Point, arrange
from nas.space.layers import IMAGE, Layer

IMAGE_SIZE = (1080, 1920)
BOX = (170.0, 54.0)
Node = tuple[int, tuple[int, ...]]
"""Level and sources of a layer."""

BACKBONE: list[Node] = [(1, (IMAGE,)), (2, (0,)), (2, (1,)), (3, (2,)), (3, (3,)), (4, (4,))]
BACKBONE += [(4, (5,)), (5, (6,)), (5, (7,)), (5, (8,)), (5, (9,))]
PAN: list[Node] = [(4, (10,)), (4, (11, 6)), (4, (12,)), (4, (13,)), (3, (14,)), (3, (15, 4))]
PAN += [(3, (16,)), (4, (17,)), (4, (18, 14)), (4, (19,)), (5, (20,)), (5, (21, 10)), (5, (22,))]


def _size(level: int) -> tuple[int, int]:
    return -(-IMAGE_SIZE[0] // 2**level), -(-IMAGE_SIZE[1] // 2**level)


def _layer(index: int, sources: tuple[int, ...], levels: tuple[int, ...]) -> Layer:
    shapes = tuple((64, *_size(level)) for level in levels)
    return Layer(index, sources, 1, "Conv", (64, 3, 1), shapes, (), "")


def _listed(nodes: list[Node], head: tuple[int, ...] = ()) -> tuple[Layer, ...]:
    body = [_layer(i, sources, (level,)) for i, (level, sources) in enumerate(nodes)]
    if head:
        body.append(_layer(len(body), head, tuple(nodes[source][0] for source in head)))
    return tuple(body)


def _bifpn(repeats: int) -> tuple[Layer, ...]:
    nodes = [*BACKBONE, (3, (4,)), (4, (6,)), (5, (10,))]

    def add(level: int, *sources: int) -> int:
        nodes.append((level, sources))
        return len(nodes) - 1

    p3, p4, p5 = 11, 12, 13
    for _ in range(repeats):
        top4 = add(4, add(4, p4, add(4, p5)))
        out3 = add(3, add(3, p3, add(3, top4)))
        out4 = add(4, add(4, p4, top4, add(4, out3)))
        p3, p4, p5 = out3, out4, add(5, add(5, p5, add(5, out4)))
    return _listed(nodes, (p3, p4, p5))


@st.composite
def _any_network(draw: st.DrawFn) -> tuple[Layer, ...]:
    """Layers that each go on from any earlier one, a level up or down or not, and join others."""
    nodes: list[Node] = [(1, (IMAGE,))]
    for index in range(1, draw(st.integers(2, 22))):
        source = draw(st.integers(max(0, index - 4), index - 1))
        level = min(max(nodes[source][0] + draw(st.integers(-1, 1)), 1), 5)
        others = draw(st.sets(st.integers(0, index - 1), max_size=2)) - {source}
        nodes.append((level, (source, *sorted(others))))
    head = draw(st.sets(st.integers(0, len(nodes) - 1), min_size=2, max_size=3))
    return _listed(nodes, tuple(sorted(head)) if draw(st.booleans()) else ())


def _segments(arrow: Arrow) -> Iterator[tuple[Point, Point]]:
    return pairwise(arrow.points)


def _enters(box: Box, start: Point, end: Point) -> bool:
    (left, right), (top, bottom) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    across = left < box.x + box.width - 0.01 and right > box.x + 0.01
    return across and top < box.y + box.height - 0.01 and bottom > box.y + 0.01


def _touches(box: Box, point: Point) -> bool:
    x, y = point[0] - box.x, point[1] - box.y
    inside = -0.01 <= x <= box.width + 0.01 and -0.01 <= y <= box.height + 0.01
    near = min(abs(x), abs(x - box.width), abs(y), abs(y - box.height))
    return inside and near < 0.01


def _shared(a: tuple[Point, Point], b: tuple[Point, Point]) -> float:
    """Return the length in which two segments lie on one another, or side by side too near."""
    for along, across in ((0, 1), (1, 0)):
        lines = [a[0][across], a[1][across], b[0][across], b[1][across]]
        if max(lines) - min(lines) < 2.5:
            starts = max(min(a[0][along], a[1][along]), min(b[0][along], b[1][along]))
            ends = min(max(a[0][along], a[1][along]), max(b[0][along], b[1][along]))
            return ends - starts
    return 0.0


def _check(layers: tuple[Layer, ...], diagram: Diagram) -> None:
    boxes = {box.layer: box for box in diagram.boxes}
    assert sorted(boxes) == [IMAGE, *range(len(layers))]
    wanted = sorted((source, layer.index) for layer in layers for source in layer.sources)
    assert sorted((arrow.source, arrow.target) for arrow in diagram.arrows) == wanted
    for a, b in combinations(diagram.boxes, 2):
        assert not _enters(a, (b.x, b.y), (b.x + b.width, b.y + b.height)), (a, b)
    for arrow in diagram.arrows:
        _check_way(arrow, diagram, boxes)
    for first, second in combinations(diagram.arrows, 2):
        if first.source != second.source:
            for one in _segments(first):
                for other in _segments(second):
                    assert _shared(one, other) < 0.01, (first, second)


def _check_way(arrow: Arrow, diagram: Diagram, boxes: dict[int, Box]) -> None:
    assert _touches(boxes[arrow.source], arrow.points[0])
    assert _touches(boxes[arrow.target], arrow.points[-1])
    for start, end in _segments(arrow):
        assert (start[0] == end[0]) != (start[1] == end[1]), "neither horizontal nor vertical"
        assert not any(_enters(box, start, end) for box in diagram.boxes), arrow
    assert math.dist(*arrow.points[-2:]) > 10, "no room for the arrowhead"
    for x, y in arrow.points:
        assert 0 < x < diagram.width
        assert 0 < y < diagram.height


@pytest.mark.parametrize(
    "layers",
    [_listed(BACKBONE + PAN, (17, 20, 23)), *(_bifpn(repeats) for repeats in (1, 2, 5))],
    ids=["hsv-det", "bifpn", "bifpn-2", "bifpn-5"],
)
def test_arrange__published_networks(layers: tuple[Layer, ...]) -> None:
    _check(layers, arrange(layers, IMAGE_SIZE, BOX))


@settings(max_examples=120, deadline=None)
@given(_any_network())
def test_arrange__any_network(layers: tuple[Layer, ...]) -> None:
    _check(layers, arrange(layers, IMAGE_SIZE, BOX))


@settings(max_examples=30, deadline=None)
@given(_any_network())
def test_arrange__bands_are_strides(layers: tuple[Layer, ...]) -> None:
    diagram = arrange(layers, IMAGE_SIZE, BOX)
    boxes = {box.layer: box for box in diagram.boxes}
    bands = {band.level: band for band in diagram.bands}
    for layer in layers:
        levels = [math.log2(IMAGE_SIZE[1] / shape[2]) for shape in layer.shapes]
        first, last = bands[round(min(levels))], bands[round(max(levels))]
        box = boxes[layer.index]
        assert first.y <= box.y
        assert box.y + box.height <= last.y + last.height


def test_arrange__columns_follow_the_flow() -> None:
    layers = _listed(BACKBONE + PAN, (17, 20, 23))
    diagram = arrange(layers, IMAGE_SIZE, BOX)
    assert [c.title for c in diagram.columns] == ["Backbone", "Top-down", "Bottom-up", "Head"]
    column = {box.layer: [c.x for c in diagram.columns].index(box.x) for box in diagram.boxes}
    assert {column[i] for i in range(-1, 11)} == {0}
    assert {column[i] for i in range(11, 18)} == {1}
    assert {column[i] for i in range(18, 24)} == {2}
    assert column[24] == 3
    top = {box.layer: box.y for box in diagram.boxes}
    assert all(top[i] < top[i - 1] for i in range(12, 18)), "the top-down path leads upwards"


def test_arrange__what_only_hands_on_stands_beside() -> None:
    diagram = arrange(_bifpn(2), IMAGE_SIZE, BOX)
    titles = [column.title for column in diagram.columns]
    assert titles[:3] == ["Backbone", "Lateral", "Top-down 1"]
    assert titles[-2:] == ["Bottom-up 2", "Head"]
    lateral = diagram.columns[1].x
    assert {box.layer for box in diagram.boxes if box.x == lateral} == {11, 12}


def test_arrange__small_maps_keep_their_level() -> None:
    sizes = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2)]
    layers = tuple(
        Layer(i, (i - 1,), 1, "Conv", (), ((8, *size),), (), "") for i, size in enumerate(sizes)
    )
    diagram = arrange(layers, (40, 40), BOX)
    assert [band.level for band in diagram.bands] == [0, 1, 2, 3, 4, 5]
