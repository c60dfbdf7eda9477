"""The Pareto front of accuracy (up) and latency (down), on plain arrays.

Dimension letters: n points. Accuracy is mAP in 0..1, latency in ms.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["front_indices", "hypervolume", "knee_index", "multipliers"]


def front_indices(accuracy: ArrayLike, latency_ms: ArrayLike) -> NDArray[np.intp]:
    """Find the non-dominated points.

    A point is dominated if another is no worse in both and better in one. Of equal points the first
    stays. Points with a NaN are never on the front.

    Args:
        accuracy: (n,) larger is better.
        latency_ms: (n,) smaller is better.

    Returns:
        Indices of the front, by ascending latency.
    """
    up, down = _pair(accuracy, latency_ms)
    order = np.lexsort((np.arange(up.size), -up, down))
    order = order[~(np.isnan(up) | np.isnan(down))[order]]
    if order.size == 0:
        return order
    best_before = np.maximum.accumulate(np.concatenate(([-np.inf], up[order][:-1])))
    return order[up[order] > best_before]


def hypervolume(
    accuracy: ArrayLike, latency_ms: ArrayLike, reference: tuple[float, float]
) -> float:
    """Measure the area that the points dominate, down to a reference point.

    Args:
        accuracy: (n,) larger is better.
        latency_ms: (n,) smaller is better.
        reference: accuracy and latency of the worst corner; points beyond it add nothing.

    Returns:
        The area, in mAP times ms.
    """
    up, down = _pair(accuracy, latency_ms)
    inside = (up > reference[0]) & (down < reference[1])
    up, down = up[inside], down[inside]
    front = front_indices(up, down)
    if front.size == 0:
        return 0.0
    ends = np.append(down[front][1:], reference[1])
    return float(np.sum((up[front] - reference[0]) * (ends - down[front])))


def knee_index(accuracy: ArrayLike, latency_ms: ArrayLike) -> int | None:
    """Find the knee: the front's point farthest above the line through the front's two ends.

    Both axes are scaled to 0..1 over the front first. None if it has fewer than three points.
    """
    up, down = _pair(accuracy, latency_ms)
    front = front_indices(up, down)
    if front.size < 3:
        return None
    x = (down[front] - down[front[0]]) / (down[front[-1]] - down[front[0]])
    y = (up[front] - up[front[0]]) / (up[front[-1]] - up[front[0]])
    return int(front[np.argmax(y - x)])


def multipliers(accuracy: ArrayLike, latency_ms: ArrayLike) -> NDArray[np.float64]:
    """Find the lambdas for which each point maximises accuracy - lambda x latency.

    They are the slopes of the upper concave hull, by which the maximum moves from one of its
    corners to the next. What lies on the front and below the hull is the best for no lambda.

    Args:
        accuracy: (n,) larger is better.
        latency_ms: (n,) smaller is better.

    Returns:
        (n, 2): least and greatest lambda, accuracy per ms; NaN for points that are never the best.
        The most accurate point is the best from 0 on, and the fastest one for all large lambdas.
    """
    up, down = _pair(accuracy, latency_ms)
    hull: list[int] = []
    for index in front_indices(up, down):
        while len(hull) > 1 and _slope(up, down, hull[-1], index) >= _slope(
            up, down, hull[-2], hull[-1]
        ):
            hull.pop()
        hull.append(int(index))
    found = np.full((up.size, 2), np.nan)
    slopes = [_slope(up, down, one, other) for one, other in itertools.pairwise(hull)]
    if hull:
        found[hull, 0], found[hull, 1] = [*slopes, 0.0], [np.inf, *slopes]
    return found


def _slope(
    up: NDArray[np.float64], down: NDArray[np.float64], one: int | np.intp, other: int | np.intp
) -> float:
    return float((up[other] - up[one]) / (down[other] - down[one]))


def _pair(
    accuracy: ArrayLike, latency_ms: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    up = np.atleast_1d(np.asarray(accuracy, dtype=np.float64))
    down = np.atleast_1d(np.asarray(latency_ms, dtype=np.float64))
    if up.ndim != 1 or up.shape != down.shape:
        raise ValueError(
            f"accuracy and latency must be equally long vectors, got {up.shape}, {down.shape}"
        )
    return up, down
