"""How well a score ranks networks: rank statistics with intervals, on arrays.

n networks have a score that is cheap, such as the mAP that a supernet gives them, and a reference
that is not, such as what each reaches when trained on its own. Whatever is compared here is one of
them with the other; a baseline, such as the number of MACs, is a score as well.

Everything is a function of pairs of networks, so a resample of the networks is a vector of weights
(how often each was drawn), and all resamples are one product of matrices. A network that is drawn
twice is tied with itself in both orders, which tau-b leaves out by its definition.

Intervals are percentiles of a bootstrap over networks (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13). They say how far a figure would move with other networks. They shrink
to a point where every pair agrees, however few there are; below `LEAST_PAIRS` they say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.errors import InputError

__all__ = [
    "LEAST_PAIRS",
    "RESOLUTION",
    "TOP_SHARE",
    "WINDOW",
    "Gap",
    "Statistic",
    "gap",
    "kendall_tau",
    "pairs_within",
    "regret",
    "seed_tau",
    "sparse_tau",
    "tau_gain",
    "top_tau",
    "window_tau",
]

LEAST_PAIRS = 6
"""Pairs that 4 networks have; with fewer, an interval is everything that a tau can be."""

RESOLUTION = 0.002
"""mAP below which a difference is none."""

TOP_SHARE = 0.2
WINDOW = 0.1
"""Latencies of a pair differ by at most this share of the lower one."""

_LEAST_TOP = 3
_LEVEL = 0.95
_DEFINED = 0.5  # share of the resamples that must have a value
_RESAMPLES = 2000

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Statistic:
    """A figure with its 95 % bootstrap interval over networks.

    Attributes:
        value: NaN where it is not defined, such as the tau of a constant.
        low: lower end of the interval.
        high: upper end.
        pairs: of networks that it was computed from; of a slope, the networks.
    """

    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Gap:
    """Score minus reference, in mAP.

    Attributes:
        mean: over the networks.
        slope: per doubling of the size; negative where the score flatters small networks.
    """

    mean: Statistic
    slope: Statistic


def kendall_tau(
    scores: ArrayLike, references: ArrayLike, *, seed: int = 0, resamples: int = _RESAMPLES
) -> Statistic:
    """Return Kendall's tau-b of two orders (Kendall, Biometrika 33, 1945).

    Args:
        scores: (n,) more is better.
        references: (n,) more is better.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: lengths differ, there are fewer than 2 networks, or a value is not finite.
    """
    scores, references = _columns(scores, references)
    return _tau(scores, references, _every(scores), _draws(len(scores), resamples, seed))


def sparse_tau(
    scores: ArrayLike,
    references: ArrayLike,
    resolution: float = RESOLUTION,
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> Statistic:
    """Return tau-b of values rounded to a resolution: differences within the noise are ties.

    Yu et al., How to Train Your Super-Net: An Analysis of Training Heuristics in Weight-Sharing
    NAS, 2020, section 3: sparse Kendall tau.

    Args:
        scores: (n,) mAP.
        references: (n,) mAP.
        resolution: in mAP.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: as `kendall_tau`, or the resolution is not above 0.
    """
    if not resolution > 0:
        raise InputError(f"A resolution is above 0, got {resolution}.")
    scores, references = _columns(scores, references)
    rounded = np.round(scores / resolution), np.round(references / resolution)
    return kendall_tau(*rounded, seed=seed, resamples=resamples)


def top_tau(
    scores: ArrayLike,
    references: ArrayLike,
    share: float = TOP_SHARE,
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> Statistic:
    """Return tau-b among the networks with the best references: the share rounded up, at least 3.

    Every resample has a top of its own.

    Raises:
        InputError: as `kendall_tau`, or the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"A share lies in (0, 1], got {share}.")
    scores, references = _columns(scores, references)
    best_first = np.argsort(-references, kind="stable")
    scores, references = scores[best_first], references[best_first]
    count = min(max(int(np.ceil(share * len(scores) - 1e-9)), _LEAST_TOP), len(scores))
    draws = _draws(len(scores), resamples, seed)[:, best_first]
    before = np.cumsum(draws, axis=1) - draws
    top = np.clip(count - before, 0, draws)  # of each resample, its `count` best
    return _tau(scores, references, _every(scores), top)


def window_tau(
    scores: ArrayLike,
    references: ArrayLike,
    latencies_ms: ArrayLike,
    within: float = WINDOW,
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> Statistic:
    """Return tau-b pooled over all pairs that cost about the same: what a budget leaves to decide.

    Args:
        scores: (n,) more is better.
        references: (n,) more is better.
        latencies_ms: (n,) above 0.
        within: see `pairs_within`.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: as `kendall_tau`.
    """
    scores, references, latencies_ms = _columns(scores, references, latencies_ms)
    near = pairs_within(latencies_ms, within)
    return _tau(scores, references, near, _draws(len(scores), resamples, seed))


def pairs_within(latencies_ms: ArrayLike, within: float = WINDOW) -> _Mask:
    """Return (n, n): the slower of two networks takes at most 1 + `within` of the faster's time."""
    values = np.asarray(latencies_ms, np.float64)
    slower = np.maximum(values[:, None], values)
    near: _Mask = slower <= (1 + within) * np.minimum(values[:, None], values)
    np.fill_diagonal(near, val=False)
    return near


def tau_gain(
    scores: ArrayLike,
    baseline: ArrayLike,
    references: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> Statistic:
    """Return tau-b of the scores minus tau-b of a baseline, on the same resamples of the networks.

    The paired bootstrap (Efron and Tibshirani, 1993, chapter 8).

    Args:
        scores: (n,) more is better.
        baseline: (n,) more is better.
        references: (n,) more is better.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: as `kendall_tau`.
    """
    scores, baseline, references = _columns(scores, baseline, references)
    draws, near = _draws(len(scores), resamples, seed), _every(scores)
    ours, theirs = (_taus(one, references, near, draws) for one in (scores, baseline))
    return _statistic(ours - theirs, int(near.sum()) // 2, 2)


def seed_tau(references: ArrayLike, *, seed: int = 0, resamples: int = _RESAMPLES) -> Statistic:
    """Return tau-b between one seed's references and another's, averaged over pairs of seeds.

    No score can be expected to agree with a reference much better than the reference with itself.

    Args:
        references: (n, s) of each network and seed.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: as `kendall_tau`; not defined (NaN) with a single seed.
    """
    table = np.asarray(references, np.float64)
    columns = _columns(*table.T)
    each = [
        kendall_tau(one, other, seed=seed, resamples=resamples)
        for one, other in combinations(columns, 2)
    ]
    if not each:
        return Statistic(np.nan, -1.0, 1.0, 0)
    # The mean of the ends is wider than the interval of the mean: the safe side.
    means = np.array([[one.value, one.low, one.high] for one in each]).mean(axis=0)
    value, low, high = (float(mean) for mean in means)
    return Statistic(value, low, high, each[0].pairs)


def regret(
    scores: ArrayLike, references: ArrayLike, latencies_ms: ArrayLike, budgets_ms: ArrayLike
) -> _Floats:
    """Return what the pick by score loses at each budget, in mAP points (1 point = 0.01 mAP).

    That is the best reference under the budget minus the reference of the best score there, or the
    mean reference of several that share it.

    Args:
        scores: (n,) more is better.
        references: (n,) mAP 0..1.
        latencies_ms: (n,).
        budgets_ms: (b,).

    Returns:
        (b,) at least 0; NaN where no network keeps the budget.

    Raises:
        InputError: as `kendall_tau`.
    """
    scores, references, latencies_ms = _columns(scores, references, latencies_ms)
    lost = []
    for budget_ms in np.atleast_1d(np.asarray(budgets_ms, np.float64)):
        inside = latencies_ms <= budget_ms
        if not inside.any():
            lost.append(np.nan)
            continue
        under = references[inside]
        picked = under[scores[inside] == scores[inside].max()]
        # The mean of equal numbers may exceed them by a rounding.
        lost.append(max(100 * float(under.max() - picked.mean()), 0.0))
    return np.array(lost)


def gap(
    scores: ArrayLike,
    references: ArrayLike,
    sizes: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> Gap:
    """Return the mean of score minus reference, and its least-squares slope per log2 of the size.

    Args:
        scores: (n,) mAP.
        references: (n,) mAP.
        sizes: (n,) such as MACs; above 0.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: as `kendall_tau`.
    """
    scores, references, sizes = _columns(scores, references, sizes)
    if sizes.min() <= 0:
        raise InputError(f"Sizes are above 0, got {sizes.min():g}.")
    wrong, doublings = scores - references, np.log2(sizes)
    draws = _draws(len(wrong), resamples, seed)
    total = draws.sum(axis=1)
    mean_x, mean_y = draws @ doublings / total, draws @ wrong / total
    off_x, off_y = doublings - mean_x[:, None], wrong - mean_y[:, None]
    spread = (draws * off_x**2).sum(axis=1)
    # Equal sizes leave a rounding of their spread, and no slope.
    flat = spread <= 1e-18 * np.maximum(1, (doublings**2).max())
    slope = np.where(flat, np.nan, (draws * off_x * off_y).sum(axis=1) / np.where(flat, 1, spread))
    count = len(wrong)
    return Gap(_statistic(mean_y, count, np.inf), _statistic(slope, count, np.inf))


def _columns(*columns: ArrayLike) -> list[_Floats]:
    arrays = [np.asarray(column, np.float64) for column in columns]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or arrays[0].ndim != 1 or len(arrays[0]) < 2:
        raise InputError(f"Columns of one length, at least 2, are compared, got {shapes}.")
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError("Every value that is compared must be finite.")
    return arrays


def _draws(count: int, resamples: int, seed: int) -> _Floats:
    """Return (1 + resamples, n) weights: first the sample itself, then how often each is drawn."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), resamples)
    return np.concatenate([np.ones((1, count)), drawn])


def _every(scores: _Floats) -> _Mask:
    return ~np.eye(len(scores), dtype=bool)


def _tau(scores: _Floats, references: _Floats, near: _Mask, weights: _Floats) -> Statistic:
    used = weights[0] > 0
    pairs = int(near[np.ix_(used, used)].sum()) // 2
    return _statistic(_taus(scores, references, near, weights), pairs, 1)


def _taus(scores: _Floats, references: _Floats, near: _Mask, weights: _Floats) -> _Floats:
    """Return (r,) tau-b over the pairs `near` (n, n) for each row of the weights (r, n)."""
    first, second = _signs(scores) * near, _signs(references) * near
    agreeing, *ordered = (
        ((weights @ pairs) * weights).sum(axis=1) for pairs in (first * second, first**2, second**2)
    )
    scale = np.sqrt(ordered[0] * ordered[1])
    taus = np.where(scale > 0, agreeing / np.where(scale > 0, scale, 1), np.nan)
    clipped: _Floats = np.clip(taus, -1, 1)
    return clipped


def _signs(values: _Floats) -> _Floats:
    return np.sign(values[:, None] - values)


def _statistic(values: _Floats, pairs: int, widest: float) -> Statistic:
    """Return the first of the values, and percentiles of the others where enough are defined.

    Args:
        values: (1 + r,) of the sample and of each resample.
        pairs: that they were computed from; networks, where nothing bounds the values.
        widest: bound of their absolute value.
    """
    drawn = values[1:][np.isfinite(values[1:])]
    if pairs < (3 if np.isinf(widest) else LEAST_PAIRS) or len(drawn) < _DEFINED * (
        len(values) - 1
    ):
        return Statistic(float(values[0]), -widest, widest, pairs)
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Statistic(float(values[0]), float(low), float(high), pairs)
