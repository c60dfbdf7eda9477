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
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ABSENT", "encode"]

Array = NDArray[np.float64]
Codes = NDArray[np.intp]
Options = Sequence[Sequence[Hashable]]

ABSENT = -1
"""The code of a choice that a point does not make, because another choice excludes it."""

_BESIDE_POSITION = 0.3  # weight of the options of increasing numbers
_MOST_OPTIONS = 32  # more of them than this are told apart by their position alone


def encode(codes: Codes, options: Options, numbers: Array | None = None) -> Array:
    """Turn points into features whose expected squared length is 1 for points drawn uniformly.

    The columns of choices are standardised for points drawn uniformly, not for those given: points
    encoded at different times can be compared. Numbers are standardised over the points given.

    Args:
        codes: (N, C) the position of each point's option, or `ABSENT`, which counts as the mean.
        options: for each choice its options, from small to large.
        numbers: (N, E) positive figures such as latency in ms, MACs, parameters; their logarithms
            are used. What has no logarithm counts as the mean.

    Returns:
        (N, F); F is 1 or more.
    """
    blocks = [*_choices(codes, options), *_counts(codes, options)]
    if numbers is not None:
        blocks += [_standardised(column) for column in np.asarray(numbers, np.float64).T]
    if not blocks:
        return np.zeros((len(codes), 1))
    return np.asarray(np.concatenate(blocks, axis=1) / np.sqrt(len(blocks)), dtype=np.float64)


def _choices(codes: Codes, options: Options) -> Iterator[Array]:
    for column, labels in zip(codes.T, options, strict=True):
        n_options, present = len(labels), column != ABSENT
        increases = n_options > 2 and _increases(labels)
        if n_options > 1 and (n_options <= _MOST_OPTIONS or not increases):
            taken = column[:, None] == np.arange(n_options)
            block = _indicators(taken, present, n_options)
            yield block * _BESIDE_POSITION if increases else block
        if increases:
            positions = np.array(labels, dtype=np.float64)
            scaled = (positions[column] - positions.mean()) / positions.std()
            yield np.where(present, scaled, 0.0)[:, None]


def _counts(codes: Codes, options: Options) -> Iterator[Array]:
    alike: dict[tuple[Hashable, ...], list[int]] = defaultdict(list)
    for index, labels in enumerate(options):
        alike[tuple(labels)].append(index)
    for labels, group in alike.items():
        if 1 < len(labels) <= _MOST_OPTIONS and len(group) > 1:
            every = (
                _indicators(
                    column[:, None] == np.arange(len(labels)), column != ABSENT, len(labels)
                )
                for column in codes[:, group].T
            )
            yield np.sum(list(every), axis=0) / np.sqrt(len(group))


def _indicators(taken: NDArray[np.bool_], present: NDArray[np.bool_], n_options: int) -> Array:
    """Return (N, options) columns of variance 1 / options each."""
    share = 1 / n_options
    scaled = (taken - share) / np.sqrt(share * (1 - share) * n_options)
    return np.where(present[:, None], scaled, 0.0)


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
