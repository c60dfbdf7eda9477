"""Points of a search space as features of a surrogate.

A choice becomes one column for each of its options, and one more for its position if the options
are increasing numbers. Choices with the same options (the blocks of four stages, the operations of
six edges) add a column for each option that counts how often it was taken: how many stages use
attention says more than which ones. What costs a candidate (latency, MACs, parameters) is appended
as logarithms.

Dimension letters: N points, C choices, E numbers, F features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ABSENT", "encode"]

Array = NDArray[np.float64]

ABSENT = -1
"""The code of a choice that a point does not make, because another choice excludes it."""


def encode(
    codes: NDArray[np.integer],
    options: Sequence[Sequence[Hashable]],
    numbers: Array | None = None,
) -> Array:
    """Turn points into features of mean 0 and variance 1, divided by the root of their number.

    The columns of choices are standardised for points drawn uniformly, not for those given: points
    encoded at different times can be compared. Numbers are standardised over the points given.

    Args:
        codes: (N, C) the position of each point's option, or `ABSENT`, which counts as the mean.
        options: for each choice its options, from small to large.
        numbers: (N, E) positive figures such as latency in ms, MACs, parameters; their logarithms
            are used. NaN counts as the mean.

    Returns:
        (N, F); F is 1 or more.
    """
    columns = [*_choices(codes, options), *_counts(codes, options)]
    if numbers is not None:
        columns += [_standardised(np.log(column)) for column in np.asarray(numbers, float).T]
    if not columns:
        return np.zeros((len(codes), 1))
    return np.asarray(np.stack(columns, axis=1) / np.sqrt(len(columns)), dtype=np.float64)


def _choices(codes: NDArray[np.integer], options: Sequence[Sequence[Hashable]]) -> Iterator[Array]:
    for column, labels in zip(codes.T, options, strict=True):
        if len(labels) > 1:
            present = column != ABSENT
            for code in range(len(labels)):
                yield _indicator(column == code, present, len(labels))
            if len(labels) > 2 and _increases(labels):
                positions = np.arange(len(labels))
                scaled = (column - positions.mean()) / positions.std()
                yield np.where(present, scaled, 0.0)


def _counts(codes: NDArray[np.integer], options: Sequence[Sequence[Hashable]]) -> Iterator[Array]:
    alike: dict[tuple[Hashable, ...], list[int]] = defaultdict(list)
    for index, labels in enumerate(options):
        alike[tuple(labels)].append(index)
    for labels, group in alike.items():
        if len(labels) > 1 and len(group) > 1:
            present = codes[:, group] != ABSENT
            for code in range(len(labels)):
                indicators = _indicator(codes[:, group] == code, present, len(labels))
                yield indicators.sum(axis=1) / np.sqrt(len(group))


def _indicator(taken: NDArray[np.bool_], present: NDArray[np.bool_], n_options: int) -> Array:
    share = 1 / n_options
    return np.where(present, (taken - share) / np.sqrt(share * (1 - share)), 0.0)


def _standardised(column: Array) -> Array:
    known = column[np.isfinite(column)]
    if known.size == 0 or np.ptp(known) == 0:
        return np.zeros_like(column)
    return np.where(np.isfinite(column), (column - known.mean()) / known.std(), 0.0)


def _increases(labels: Sequence[Hashable]) -> bool:
    numbers = [one for one in labels if isinstance(one, int | float) and not isinstance(one, bool)]
    return len(numbers) == len(labels) and all(np.diff(np.array(numbers, dtype=float)) > 0)
