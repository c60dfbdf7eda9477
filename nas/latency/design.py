"""Which networks to measure, so that a few say most about all: no random ones.

A latency is taken to be a sum of amounts, each times an unknown cost (`nas.latency.predictor`).
Relative to its latency, a network is then a row of shares, and what is not known about it is the
variance of a linear regression at that row. Measuring, one after the other, the network about which
least is known maximises, greedily, the determinant of the information (a D-optimal design; Fedorov,
"Theory of Optimal Experiments", 1972).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas.errors import InputError

__all__ = ["cover"]

_RIDGE = 0.01  # small beside one measurement: the order of the choices hardly depends on it


def cover(features: NDArray[np.float64], count: int, *, chosen: Sequence[int] = ()) -> list[int]:
    """Choose the candidates whose measurements say most about all of them; deterministic.

    Args:
        features: amounts of each candidate, (N, F), finite and not negative.
        count: how many to choose, beside those chosen before.
        chosen: rows that are measured already.

    Returns:
        Row numbers, the most telling one first; no row twice, none of `chosen`.

    Raises:
        InputError: there are fewer than `count` other rows, or the features are not such numbers.
    """
    _check(features, count, chosen)
    rows = _shares(features)
    information = _RIDGE * np.eye(rows.shape[1]) + rows[list(chosen)].T @ rows[list(chosen)]
    inverse = np.linalg.inv(information)
    taken, found = list(chosen), list[int]()
    for _ in range(count):
        toward = rows @ inverse
        variance = (toward * rows).sum(axis=1)
        variance[taken] = -1.0
        best = int(np.argmax(variance))
        # Sherman and Morrison (1950): the inverse after one more row.
        inverse -= np.outer(toward[best], toward[best]) / (1 + variance[best])
        taken.append(best)
        found.append(best)
    return found


def _shares(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide every row by its latency if all amounts cost alike on average, (N, F + 1)."""
    amounts = np.column_stack([features, np.ones(len(features))])
    amounts = amounts[:, amounts.any(axis=0)]
    amounts = amounts / amounts.mean(axis=0)
    shares = amounts / amounts.sum(axis=1, keepdims=True)
    return np.asarray(shares * np.sqrt(shares.shape[1]), np.float64)


def _check(features: NDArray[np.float64], count: int, chosen: Sequence[int]) -> None:
    if features.ndim != 2 or not np.all(np.isfinite(features)) or np.any(features < 0):
        raise InputError("Features must be a table (N, F) of finite numbers that are >= 0.")
    rows = set(chosen)
    if len(rows) < len(chosen) or not rows <= set(range(len(features))):
        raise InputError(
            f"What is chosen must be different rows of {len(features)}, got {list(chosen)}."
        )
    if not 0 <= count <= len(features) - len(rows):
        raise InputError(
            f"Of {len(features) - len(rows)} candidates, 0 to as many can be chosen, got {count}.",
            "Offer more candidates, or choose fewer.",
        )
