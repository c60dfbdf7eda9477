"""Where the boxes and arrows of a drawn network lie: geometry only, no colours and no text.

Boxes stand in the cells of a grid (`diagram_grid.py`).

Every arrow is a polyline of horizontal and vertical segments. It keeps to three kinds of free
space: the gutters between columns, the gaps above bands, and rows that are empty where it crosses
them. Arrows of one source share their way; those of different sources never lie on one another.
Points are symbols at first ("the track of source 6 in gutter 1"), so that gutters and gaps can grow
with what runs through them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from nas.results.diagram_grid import Cell, Grid, grid_of
from nas.space.layers import IMAGE, Layer

__all__ = ["Arrow", "Band", "Box", "Column", "Diagram", "Point", "arrange"]

Point = tuple[float, float]
"""x and y in pixels, from the top left."""

_MARGIN, _LABELS = 20.0, 96.0  # around everything; for the names of the bands
_SPACING = 11.0  # between parallel arrows
_CLEAR = 17.0  # between a box and the nearest arrow beside it, long enough for an arrowhead
_ROW_GAP, _BAND_PAD = 16.0, 12.0
_HEADING = 26.0
# Of a box's height: where arrows leave, and come from the left (below the one that comes straight
# across, if they come from below it) and from the right. They are apart: none lies on another.
_EXIT, _UPPER, _LOWER, _SIDE = 0.66, (0.12, 0.44), (0.8, 0.92), (0.5, 0.6)


@dataclass(frozen=True)
class Box:
    """The place of a layer; `IMAGE` is the input."""

    layer: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Arrow:
    """From the border of one box to that of another, along horizontal and vertical segments."""

    source: int
    target: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Band:
    """The rows of one level: 0 for the image, 3 for P3."""

    level: int
    y: float
    height: float


@dataclass(frozen=True)
class Column:
    """A column and what it is called."""

    title: str
    x: float
    width: float


@dataclass(frozen=True)
class Diagram:
    """Everything in its place, within (0, 0) and (width, height)."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    bands: tuple[Band, ...]
    columns: tuple[Column, ...]
    width: float
    height: float


def arrange(layers: Sequence[Layer], image: tuple[int, int], box: tuple[float, float]) -> Diagram:
    """Place the layers of a network and route what flows between them.

    Args:
        layers: in an order in which they can run; the one with several shapes is the head.
        image: height and width of the input, in pixels.
        box: width and height of a box, in pixels.
    """
    grid = grid_of(layers, image)
    plans = [plan for layer in layers for plan in _plans_to(layer.index, layer.sources, grid)]
    return _Measures(grid, plans, box).diagram()


# ---- Which way -----------------------------------------------------------------------------------


class _X(NamedTuple):
    """A place across: `left`, `centre` or `right` of a column, or a source's track in a gutter."""

    kind: str
    lane: int
    source: int = IMAGE


class _Y(NamedTuple):
    """A place down: a fraction of a row's height, or a source's way in the gap above a level."""

    row: int
    fraction: float
    gap: int | None = None
    source: int = IMAGE


class _Plan(NamedTuple):
    source: int
    target: int
    corners: tuple[tuple[_X, _Y], ...]


def _plans_to(target: int, sources: Sequence[int], grid: Grid) -> list[_Plan]:
    to = grid.cells[target]
    straight = [s for s in sources if _is_straight(grid, s, to)]
    others = sorted((s for s in sources if s not in straight), key=lambda s: grid.cells[s].first)
    plans = [_Plan(s, target, _straight(grid.cells[s], to)) for s in straight]
    level = any(grid.cells[s].lane != to.lane for s in straight)
    side = [s for s in others if grid.cells[s].lane == to.lane]
    below = [s for s in others if level and s not in side and grid.cells[s].first > to.first]
    above = [s for s in others if s not in side and s not in below]
    for some, place in ((above, _UPPER), (side, _SIDE), (below, _LOWER)):
        for source, fraction in zip(some, _spread(place, len(some)), strict=True):
            plans.append(_Plan(source, target, _bent(grid, source, to, fraction)))
    return plans


def _spread(place: tuple[float, float], number: int) -> list[float]:
    """Return so many places from a first to a last one; a single one lies between."""
    first, last = place
    if number == 1:
        return [(first + last) / 2]
    return [first + (last - first) * k / (number - 1) for k in range(number)]


def _is_straight(grid: Grid, source: int, to: Cell) -> bool:
    at = grid.cells[source]
    if at.lane == to.lane:
        return not grid.between(at.lane, at.first, to.first)
    crossed = range(at.lane + 1, to.lane)
    return to.first <= at.first <= to.last and not grid.blocked(crossed, at.first)


def _straight(at: Cell, to: Cell) -> tuple[tuple[_X, _Y], ...]:
    if at.lane == to.lane:
        down = to.first > at.first
        centre = _X("centre", at.lane)
        return (centre, _Y(at.first, float(down))), (centre, _Y(to.first, float(not down)))
    level = _Y(at.first, _EXIT)
    return (_X("right", at.lane), level), (_X("left", to.lane), level)


def _bent(grid: Grid, source: int, to: Cell, fraction: float) -> tuple[tuple[_X, _Y], ...]:
    at = grid.cells[source]
    out, exit_ = _X("right", at.lane), _Y(at.first, _EXIT)
    near = _X("track", at.lane, source)
    if at.lane == to.lane:
        back = _Y(to.first, fraction)
        return (out, exit_), (near, exit_), (near, back), (out, back)
    row = at.first if to.first <= at.first <= to.last else to.first
    far, entry = _X("track", to.lane - 1, source), _Y(row, fraction)
    end = _X("left", to.lane), entry
    crossed = range(at.lane + 1, to.lane)
    if not grid.blocked(crossed, at.first):
        return (out, exit_), (far, exit_), (far, entry), end
    if not grid.blocked(crossed, row):
        return (out, exit_), (near, exit_), (near, entry), end
    gap = _gap(grid, at.first, row, source)
    return (out, exit_), (near, exit_), (near, gap), (far, gap), (far, entry), end


def _gap(grid: Grid, row: int, other: int, source: int) -> _Y:
    """Return a way in the gap above a band that makes the shortest detour between two rows."""

    def detour(level: int) -> float:
        edge = grid.first_row[level] - 0.5
        return abs(edge - row) + abs(edge - other)

    level = min((level for level in grid.first_row if level > 0), key=detour)
    return _Y(grid.first_row[level], 0.0, level, source)


# ---- How wide, how high --------------------------------------------------------------------------


@dataclass
class _Way:
    """What one source runs through one gutter: from where to where, and what leaves it."""

    ys: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)

    def spans(self, y: float) -> bool:
        return min(self.ys) < y < max(self.ys)

    def meets(self, other: _Way) -> bool:
        """Tell whether both cannot be on one line."""
        apart = max(self.ys) + _SPACING < min(other.ys) or max(other.ys) + _SPACING < min(self.ys)
        return not apart


def _crossings(first: _Way, second: _Way) -> int:
    """Count the crossings of two ways of a gutter if the first runs left of the second."""
    return sum(map(second.spans, first.right)) + sum(map(first.spans, second.left))


def _tracks(ways: dict[int, _Way]) -> dict[int, int]:
    """Number the tracks of a gutter from the left, by few crossings (neighbours change places)."""
    order = sorted(ways, key=lambda source: min(ways[source].ys))
    improved = True
    while improved:
        improved = False
        for i, (a, b) in enumerate(pairwise(list(order))):
            if order[i : i + 2] == [a, b] and _better_swapped(ways[a], ways[b]):
                order[i : i + 2] = [b, a]
                improved = True
    numbers: dict[int, int] = {}
    for source in order:
        met = [numbers[other] for other in numbers if ways[other].meets(ways[source])]
        numbers[source] = max(met, default=-1) + 1
    return numbers


def _better_swapped(first: _Way, second: _Way) -> bool:
    return _crossings(second, first) < _crossings(first, second)


class _Measures:
    """Symbols to pixels: heights first, then the order in the gutters, then widths."""

    def __init__(self, grid: Grid, plans: Sequence[_Plan], box: tuple[float, float]) -> None:
        self._grid, self._plans = grid, plans
        self._width, self._height = box
        self._gaps = self._gaps_in_use()
        self._tops, self._bands = self._measure_down()
        self._numbers = {gutter: _tracks(ways) for gutter, ways in self._ways().items()}
        self._lefts = self._measure_across()

    def diagram(self) -> Diagram:
        boxes = tuple(self._box(index, cell) for index, cell in sorted(self._grid.cells.items()))
        arrows = tuple(
            Arrow(
                plan.source,
                plan.target,
                _simplified((self._x(x), self._y(y)) for x, y in plan.corners),
            )
            for plan in self._plans
        )
        columns = tuple(map(partial(Column, width=self._width), self._grid.titles, self._lefts))
        beside = len(self._lefts) - 2 in self._numbers  # arrows right of the last column
        width = (self._lefts[-1] - _CLEAR if beside else self._lefts[-2] + self._width) + _MARGIN
        height = self._bands[-1].y + self._bands[-1].height
        return Diagram(boxes, arrows, self._bands, columns, width, height)

    def _gaps_in_use(self) -> dict[int, list[int]]:
        used: dict[int, list[int]] = defaultdict(list)
        for plan in self._plans:
            for _, y in plan.corners:
                if y.gap is not None and y.source not in used[y.gap]:
                    used[y.gap].append(y.source)
        return used

    def _measure_down(self) -> tuple[list[float], tuple[Band, ...]]:
        tops: list[float] = []
        bands = []
        y = _HEADING
        levels = sorted(self._grid.first_row, key=self._grid.first_row.__getitem__)
        ends = [self._grid.first_row[level] for level in levels[1:]] + [self._grid.rows]
        for level, end in zip(levels, ends, strict=True):
            start = y
            y += _BAND_PAD + _SPACING * len(self._gaps.get(level, ()))
            while len(tops) < end:
                tops.append(y)
                y += self._height + _ROW_GAP
            y += _BAND_PAD - _ROW_GAP
            bands.append(Band(level, start, y - start))
        return tops, tuple(bands)

    def _ways(self) -> dict[int, dict[int, _Way]]:
        ways: dict[int, dict[int, _Way]] = defaultdict(lambda: defaultdict(_Way))
        for plan in self._plans:
            for (a, y1), (b, y2) in pairwise(plan.corners):
                self._note(ways, a, b, self._y(y1), self._y(y2))
        return ways

    @staticmethod
    def _note(ways: dict[int, dict[int, _Way]], a: _X, b: _X, y1: float, y2: float) -> None:
        """Remember a segment in the gutters whose tracks it lies on or reaches."""
        if a == b and a.kind == "track":
            ways[a.lane][a.source].ys += [y1, y2]
        elif a != b:
            if b.kind == "track":
                ways[b.lane][b.source].left.append(y1)
            if a.kind == "track":
                side = ways[a.lane][a.source]
                (side.left if b == _X("right", a.lane) else side.right).append(y1)

    def _measure_across(self) -> list[float]:
        lefts = [_MARGIN + _LABELS]
        for lane in range(len(self._grid.titles)):
            tracks = max(self._numbers.get(lane, {IMAGE: -1}).values()) + 1
            gutter = 2 * _CLEAR + _SPACING * max(tracks - 1, 0)
            lefts.append(lefts[-1] + self._width + gutter)
        return lefts

    def _x(self, at: _X) -> float:
        left = self._lefts[at.lane]
        if at.kind == "track":
            number = self._numbers[at.lane][at.source]
            return left + self._width + _CLEAR + _SPACING * number
        return left + self._width * {"left": 0.0, "centre": 0.5, "right": 1.0}[at.kind]

    def _y(self, at: _Y) -> float:
        if at.gap is None:
            return self._tops[at.row] + self._height * at.fraction
        number = self._gaps[at.gap].index(at.source)
        return self._tops[at.row] - _BAND_PAD / 2 - _SPACING * (number + 0.5)

    def _box(self, index: int, cell: Cell) -> Box:
        top, bottom = self._tops[cell.first], self._tops[cell.last] + self._height
        return Box(index, self._lefts[cell.lane], top, self._width, bottom - top)


def _simplified(points: Iterable[Point]) -> tuple[Point, ...]:
    """Leave out points that do not turn."""
    kept: list[Point] = []
    for point in points:
        if kept and kept[-1] == point:
            continue
        if len(kept) > 1 and any(kept[-2][i] == kept[-1][i] == point[i] for i in (0, 1)):
            kept.pop()
        kept.append(point)
    return tuple(kept)
