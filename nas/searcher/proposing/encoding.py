"""Points of a search space as features of a surrogate.

Every choice counts alike, however many options it has: options are columns of one block, and
increasing numbers are one column of their position, with the options beside it at a smaller weight,
in case one of them is special. Choices with the same options (the blocks of four stages, the
operations of six edges) share a block that counts how often each option was taken: how many stages
use attention says more than which ones. What costs a candidate (latency, MACs, parameters) is
appended as logarithms.

Dimension letters: N points, C choices, E numbers, F features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ABSENT", "Encoding"]

Array = NDArray[np.float64]
Codes = NDArray[np.intp]
Options = Sequence[Sequence[Hashable]]

ABSENT = -1
"""The code of a choice that a point does not make, because another choice excludes it."""

_BESIDE_POSITION = 0.3  # weight of the options of increasing numbers
_MOST_OPTIONS = 32  # more of them than this are told apart by their position alone


class Encoding:
    """Turns points into features whose expected squared length is 1 for points drawn uniformly.

    The columns of choices are standardised for points drawn uniformly, not for those given: points
    encoded at different times can be compared. Each is looked up in a table that is made once.

    Args:
        options: for each choice its options, from small to large.
    """

    def __init__(self, options: Options) -> None:
        blocks = [_blocks(labels) for labels in options]
        # The row of ABSENT, -1, is the last.
        self._tables = [np.concatenate(one, axis=1) if one else None for one in blocks]
        self._groups = [
            (group, _indicators(len(labels)) / np.sqrt(len(group)))
            for labels, group in _alike(options).items()
            if 1 < len(labels) <= _MOST_OPTIONS and len(group) > 1
        ]
        self._n_blocks = sum(map(len, blocks)) + len(self._groups)

    def __call__(self, codes: Codes, numbers: Array | None = None) -> Array:
        """Encode points.

        Args:
            codes: (N, C) position of each point's option, or `ABSENT`, which counts as the mean.
            numbers: (N, E) positive figures such as latency in ms, MACs, parameters, whose
                logarithms are standardised over the points given. What has no logarithm counts as
                the mean.

        Returns:
            (N, F); F is 1 or more.
        """
        columns = [
            table[column]
            for table, column in zip(self._tables, codes.T, strict=True)
            if table is not None
        ]
        columns += [
            np.sum([table[codes[:, one]] for one in group], axis=0) for group, table in self._groups
        ]
        n_blocks = self._n_blocks
        if numbers is not None:
            added = [_standardised(column) for column in np.asarray(numbers, np.float64).T]
            columns, n_blocks = columns + added, n_blocks + len(added)
        if not columns:
            return np.zeros((len(codes), 1))
        return np.asarray(np.concatenate(columns, axis=1) / np.sqrt(n_blocks), dtype=np.float64)


def _blocks(labels: Sequence[Hashable]) -> list[Array]:
    """Return the features of a choice's options, (options + 1, columns) each."""
    n_options, found = len(labels), []
    increases = n_options > 2 and _increases(labels)
    if n_options > 1 and (n_options <= _MOST_OPTIONS or not increases):
        found.append(_indicators(n_options) * (_BESIDE_POSITION if increases else 1.0))
    if increases:
        positions = np.array(labels, dtype=np.float64)
        scaled = (positions - positions.mean()) / positions.std()
        found.append(np.append(scaled, 0.0)[:, None])
    return found


def _alike(options: Options) -> dict[tuple[Hashable, ...], list[int]]:
    """Return which choices have the same options."""
    alike: dict[tuple[Hashable, ...], list[int]] = defaultdict(list)
    for index, labels in enumerate(options):
        alike[tuple(labels)].append(index)
    return alike


def _indicators(n_options: int) -> Array:
    """Return (options + 1, options): columns of variance 1 / options each, and a row of 0."""
    share = 1 / n_options
    scaled = (np.eye(n_options) - share) / np.sqrt(share * (1 - share) * n_options)
    return np.concatenate([scaled, np.zeros((1, n_options))])


def _standardised(column: Array) -> Array:
    logarithms = np.log(np.where(column > 0, column, np.nan))
    known = logarithms[np.isfinite(logarithms)]
    if known.size == 0 or np.ptp(known) == 0:
        return np.zeros((len(column), 1))
    scaled = (logarithms - known.mean()) / known.std()
    return np.where(np.isfinite(logarithms), scaled, 0.0)[:, None]


def _increases(labels: Sequence[Hashable]) -> bool:
    numbers = [one for one in labels if isinstance(one, int | float) and not isinstance(one, bool)]
    return len(numbers) == len(labels) and bool(np.all(np.diff(np.array(numbers, float)) > 0))
