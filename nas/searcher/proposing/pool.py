"""Candidates worth asking the surrogate about.

A large space cannot be searched whole for the largest expected improvement. Where it lies is known
roughly: near the best points so far. The pool holds points one edit and two edits away from them,
crossovers of two of them, and random points for the rest of the space. A second edit is applied
whatever the first one led to: under a budget, single steps meet walls of infeasible points. Where
two steps are not enough, such as from one input size to the next, the cost of one choice is saved
on others until the point fits.

Dimension letters: N points, P parents, C choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.searcher.proposing.encoding import ABSENT

__all__ = ["WHOLE", "Conditions", "edited", "make_pool", "saved_up", "with_option"]

Codes = NDArray[np.intp]
Mask = NDArray[np.bool_]

_SAVED_UP, _SAVINGS, _TRIES = 96, 12, 4
_RANDOM, _ONE_EDIT, _TWO_EDITS, _CROSSED = 800, 600, 400, 200

WHOLE = 2000
"""A space of up to so many points is its own pool."""


def make_pool(
    sizes: Sequence[int], parents: Codes, rng: np.random.Generator, *, local: bool = False
) -> Codes:
    """Gather distinct points: all of a small space, a few thousand of a large one.

    Args:
        sizes: how many options each of the C choices has.
        parents: (P, C) the best points so far, the best first; `ABSENT` stays absent.
        rng: draws.
        local: whether random points are left out.

    Returns:
        (N, C) codes of options, in an order that depends on the points alone.
    """
    if math.prod(sizes) <= WHOLE:
        grid = np.indices(tuple(sizes)).reshape(len(sizes), math.prod(sizes))
        return np.asarray(grid.T, dtype=np.intp)
    drawn = rng.integers(sizes, size=(_RANDOM, len(sizes)))
    parts = [] if local and len(parents) else [drawn]
    if len(parents):
        once = _neighbours(sizes, parents)
        if len(once) > _ONE_EDIT:
            once = once[rng.choice(len(once), _ONE_EDIT, replace=False)]
        twice = _edited(sizes, _edited(sizes, _resampled(parents, _TWO_EDITS, rng), rng), rng)
        mothers, fathers = (_resampled(parents, _CROSSED, rng) for _ in range(2))
        crossed = np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)
        parts += [once, twice, crossed]
    return np.asarray(np.unique(np.concatenate(parts), axis=0), dtype=np.intp)


def edited(sizes: Sequence[int], parents: Codes, rng: np.random.Generator) -> tuple[Codes, Mask]:
    """Change one choice of parents to another option, the better parents more often.

    Returns:
        (N, C) points, and which choice of each was changed.
    """
    drawn = _resampled(parents, _SAVED_UP, rng)
    points = _edited(sizes, drawn, rng)
    return points, points != drawn


def with_option(
    parents: Codes, choice: int, option: int, rng: np.random.Generator
) -> tuple[Codes, Mask]:
    """Set one choice of parents, the better parents more often.

    Returns:
        (N, C) points, and which choice of each was set.
    """
    points = _resampled(parents, _SAVED_UP, rng)
    points = points[points[:, choice] != ABSENT]
    fixed = np.zeros(points.shape, dtype=bool)
    points[:, choice], fixed[:, choice] = option, True
    return points, fixed


def saved_up(
    sizes: Sequence[int],
    points: Codes,
    fixed: Mask,
    cost: Callable[[Codes], NDArray[np.float64]],
    limits: NDArray[np.float64],
    rng: np.random.Generator,
) -> Codes:
    """Change choices of points until they cost no more than their limits.

    In a space of many choices nearly no random point with the costliest option of the choice that
    matters most keeps a tight budget, and none lies two edits away from the best that do. Each
    saving is the best of a few random edits: greedy ones would end at the same few points.

    Args:
        sizes: how many options each of the C choices has.
        points: (N, C) codes.
        fixed: (N, C) choices that stay as they are.
        cost: of points, (N,), in the unit of the limits.
        limits: (N,) what each may cost.
        rng: draws.

    Returns:
        Those that came within their limits.
    """
    points, costs = points.copy(), cost(points)
    for _ in range(_SAVINGS):
        over = np.flatnonzero(costs > limits)
        if over.size == 0:
            break
        before = np.repeat(points[over], _TRIES, axis=0)
        stays = np.repeat(fixed[over], _TRIES, axis=0)
        tries = np.where(stays, before, _edited(sizes, before, rng))
        tried = cost(tries).reshape(-1, _TRIES)
        best = np.arange(len(over)) * _TRIES + tried.argmin(axis=1)
        saves = tried.min(axis=1) < costs[over]
        points[over[saves]] = tries[best[saves]]
        costs[over[saves]] = tried.min(axis=1)[saves]
    return points[costs <= limits]


def _neighbours(sizes: Sequence[int], parents: Codes) -> Codes:
    """Return all points one edit away; what is absent has no edits."""
    found = []
    for choice, size in enumerate(sizes):
        for option in range(size):
            rows = parents[(parents[:, choice] != option) & (parents[:, choice] != ABSENT)].copy()
            rows[:, choice] = option
            found.append(rows)
    return np.concatenate(found)


def _edited(sizes: Sequence[int], points: Codes, rng: np.random.Generator) -> Codes:
    """Change one choice of each point to another option."""
    several = np.array(sizes) > 1
    weights = rng.random(points.shape) * (several & (points != ABSENT))
    rows, choices = np.arange(len(points)), weights.argmax(axis=1)
    edited, size = points.copy(), np.array(sizes)[choices]
    before = points[rows, choices]
    step = rng.integers(1, np.maximum(size, 2))
    movable = (before != ABSENT) & (size > 1)
    edited[rows, choices] = np.where(movable, (before + step) % size, before)
    return edited


def _resampled(parents: Codes, count: int, rng: np.random.Generator) -> Codes:
    """Draw parents, the better ones more often: the first of two draws."""
    rows = np.minimum(*(rng.integers(len(parents), size=count) for _ in range(2)))
    return parents[rows]


class Conditions:
    """Which choices exist beside which others, learned from points that were made.

    A choice that some points lack may depend on another: on one for which each option, absence
    included, decides whether it is there. The first such choice is taken for the cause.

    Args:
        points: (N, C) with `ABSENT` where a choice was not made.
    """

    def __init__(self, points: Codes) -> None:
        self._causes: list[tuple[int, int, NDArray[np.intp]]] = []
        sometimes = np.flatnonzero((points == ABSENT).any(axis=0))
        for choice in sometimes:
            absent = points[:, choice] == ABSENT
            for cause in range(points.shape[1]):
                without, beside = np.unique(points[absent, cause]), points[~absent, cause]
                if cause != choice and not np.isin(beside, without).any():
                    self._causes.append((int(choice), cause, without))
                    break

    def apply(self, points: Codes, sizes: Sequence[int], rng: np.random.Generator) -> Codes:
        """Remove choices that are not there beside the others, and draw those that are."""
        applied = points.copy()
        for _ in range(len(self._causes) and 3):  # a cause may itself depend on another
            for choice, cause, without in self._causes:
                excluded = np.isin(applied[:, cause], without)
                drawn = rng.integers(sizes[choice], size=len(applied))
                kept = np.where(applied[:, choice] == ABSENT, drawn, applied[:, choice])
                applied[:, choice] = np.where(excluded, ABSENT, kept)
        return applied
