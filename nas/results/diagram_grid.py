"""In which column and row each layer of a drawn network stands.

Rows are bands of one stride each. Columns follow the direction in which features flow: down the
backbone, up the top-down path, down the bottom-up path, and so on for as many turns as a neck
takes; what only hands a feature on to the next column (a 1x1 convolution before a concatenation)
stands in a column of its own, beside the one that it takes from. The head spans its levels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from typing import NamedTuple

from nas.space.layers import IMAGE, Layer

__all__ = ["Cell", "Grid", "grid_of"]


class Cell(NamedTuple):
    """Where a layer stands: column, level, and the rows from the first to the last."""

    lane: int
    level: int
    first: int
    last: int


@dataclass(frozen=True)
class Grid:
    """All cells, and what the columns and bands are.

    Attributes:
        cells: by number of the layer; `IMAGE` is the input.
        titles: of the columns, from the left.
        first_row: level -> its first row, from the top.
        rows: their number.
    """

    cells: dict[int, Cell]
    titles: tuple[str, ...]
    first_row: dict[int, int]
    rows: int

    def blocked(self, lanes: Iterable[int], row: int) -> bool:
        """Tell whether some box of these columns touches the row."""
        wanted = set(lanes)
        return any(c.lane in wanted and c.first <= row <= c.last for c in self.cells.values())

    def between(self, lane: int, row: int, other: int) -> bool:
        """Tell whether a box of this column lies strictly between two rows."""
        low, high = sorted((row, other))
        return any(self.blocked([lane], r) for r in range(low + 1, high))


def grid_of(layers: Sequence[Layer], image: tuple[int, int]) -> Grid:
    """Give every layer, and the input, a cell of its own.

    Args:
        layers: in an order in which they can run; the one with several shapes is the head.
        image: height and width of the input, in pixels.
    """
    body = [layer for layer in layers if len(layer.shapes) == 1]
    levels = {layer.index: _level(layer.shapes[0], image) for layer in body} | {IMAGE: 0}
    columns = _columns(body, levels)
    lanes = sorted({*columns.values()})
    stacks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in sorted(columns):
        stacks[lanes.index(columns[index]), levels[index]].append(index)
    heads = [layer for layer in layers if len(layer.shapes) > 1]
    spans = {head.index: [_level(shape, image) for shape in head.shapes] for head in heads}
    bands = sorted({level for _, level in stacks} | {level for s in spans.values() for level in s})
    sizes = [max((len(s) for (_, at), s in stacks.items() if at == b), default=1) for b in bands]
    first_row = dict(zip(bands, accumulate(sizes, initial=0), strict=False))
    size = dict(zip(bands, sizes, strict=True))
    cells: dict[int, Cell] = {}
    for (lane, level), stack in stacks.items():
        cells |= _stacked(stack, lane, level, first_row[level], size[level], up=_is_up(lanes[lane]))
    for index, span in spans.items():
        last = first_row[max(span)] + size[max(span)] - 1
        cells[index] = Cell(len(lanes), min(span), first_row[min(span)], last)
    titles = _titles(lanes) + ("Head",) * bool(heads)
    return Grid(cells, titles, first_row, sum(sizes))


def _level(shape: tuple[int, int, int], image: tuple[int, int]) -> int:
    """Return how many times the image was halved, sizes being rounded up."""
    return next(k for k in count() if (-(-image[0] >> k), -(-image[1] >> k)) == shape[1:])


class _Lane(NamedTuple):
    """A column: how many turns the features took to it, and whether it stands beside the flow."""

    turns: int
    lateral: bool = False


def _is_up(lane: _Lane) -> bool:
    return lane.turns % 2 == 1 or lane.lateral


def _columns(body: Sequence[Layer], levels: dict[int, int]) -> dict[int, _Lane]:
    turns = {IMAGE: 0}
    for layer in body:
        level = levels[layer.index]
        turns[layer.index] = max(
            turns[s] + _turn(turns[s], levels[s], level) for s in layer.sources
        )
    flows: set[int] = set()
    for column in set(turns.values()):
        flows |= _flow(body, levels, {i for i, t in turns.items() if t == column}, column)
    return {index: _Lane(t, index not in flows) for index, t in turns.items()}


def _turn(turns: int, level: int, to: int) -> int:
    """Tell whether a step between levels goes against the direction of its column."""
    return int(to > level) if turns % 2 else int(to < level)


def _flow(
    body: Sequence[Layer], levels: dict[int, int], members: set[int], column: int
) -> set[int]:
    """Return the members that lead to where a column ends; the others stand beside it."""
    towards = -1 if column % 2 else 1
    flow = {max(members, key=lambda i: (towards * levels[i], i))}
    for layer in reversed(body):
        if layer.index in flow:
            flow |= members.intersection(layer.sources)
    return flow


def _stacked(
    stack: list[int], lane: int, level: int, first: int, size: int, *, up: bool
) -> dict[int, Cell]:
    ordered = stack[::-1] if up else stack
    start = first + (size - len(stack) if up else 0)
    return {index: Cell(lane, level, row, row) for row, index in enumerate(ordered, start=start)}


def _titles(lanes: Sequence[_Lane]) -> tuple[str, ...]:
    main = [lane.turns for lane in lanes if not lane.lateral]
    return tuple("Lateral" if lane.lateral else _title(lane.turns, max(main)) for lane in lanes)


def _title(turns: int, last: int) -> str:
    if turns == 0:
        return "Backbone"
    name, number = ("Top-down", (turns + 1) // 2) if turns % 2 else ("Bottom-up", turns // 2)
    return f"{name} {number}" if last > 2 else name
