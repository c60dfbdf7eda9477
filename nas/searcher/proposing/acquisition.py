"""Which candidates to score next: expected improvement, toward one budget or of the whole front.

Latency is known, or well predicted, before an accuracy is paid for, so it needs no acquisition of
its own: an improvement under a budget is an improvement over the best that keeps that budget, and
an improvement of the front is the sum of those over a ladder of budgets. That is the expected gain
of hypervolume with a known second objective, as a sum over the ladder. The ladder must be fine: a
candidate just above a rung counts for the next one only, where others are better anyway.

Dimension letters: n observations, N candidates, F features, p pending, b budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from nas.searcher.proposing.surrogate import (
    TARGETS,
    Array,
    GaussianProcess,
    Hyperparameters,
    Likely,
    squared_distances,
)

__all__ = ["Observed", "Settings", "propose", "recommend"]

Mask = NDArray[np.bool_]

_SHORTLIST = 512  # candidates whose gain is computed exactly
_PATIENCE, _LOSS_OF_TRUST, _MOST_DOUBT = 5, 10, 3.0


@dataclass(frozen=True)
class Observed:
    """What was paid for.

    Attributes:
        features: (n, F), from the same encoding as the pool's.
        accuracy: (n,) larger is better, in any unit; NaN where the evaluation failed.
        latency_ms: (n,).
    """

    features: Array
    accuracy: Array
    latency_ms: Array

    @property
    def scored(self) -> Observed:
        """Those with an accuracy."""
        known = np.isfinite(self.accuracy)
        return Observed(self.features[known], self.accuracy[known], self.latency_ms[known])


@dataclass(frozen=True)
class Settings:
    """What was tuned, on NAS-Bench-201 CIFAR-10 and on YOLOBench VOC with OpenVINO.

    Attributes:
        start: observations before the surrogate is asked.
        explore: share of proposals drawn at random: they keep the surrogate honest.
        budgets: rungs of the ladder when the whole front is wanted.
        most: observations the surrogate learns from; beyond them, the best half of that number and
            the newest of the rest.
        hyperparameters: None finds them.
    """

    start: int = 8
    explore: float = 0.05
    budgets: int = 128
    most: int = 400
    hyperparameters: Likely | None = None


def propose(
    pool_features: Array,
    pool_latency_ms: Array,
    observed: Observed,
    *,
    count: int = 1,
    budget_ms: float | Sequence[float] | None = None,
    rng: np.random.Generator,
    pending: Observed | None = None,
    feasibility: Array | None = None,
    settings: Settings | None = None,
) -> list[int]:
    """Choose what to score next.

    A batch is chosen one by one, each as if those before it had come out as expected (kriging
    believer: Ginsbourger, Le Riche, Carraro, Kriging is well-suited to parallelize optimization,
    2010); the same goes for what is pending.

    Args:
        pool_features: (N, F).
        pool_latency_ms: (N,).
        observed: what was scored; none of it is proposed again.
        count: how many to propose; fewer come back if the pool has no more.
        budget_ms: one budget: nothing over it is proposed, and all effort goes toward it. Several:
            nothing over the largest, and the front at all of them. None: the whole front.
        rng: draws the start and the exploration.
        pending: what is being scored at the moment; not proposed again. Its accuracies are ignored.
        feasibility: (N,) probability that a candidate keeps all limits; None takes 1.
        settings: None takes the defaults.

    Returns:
        Indices into the pool, the most promising first.
    """
    settings = settings or Settings()
    pending = pending or Observed(pool_features[:0], pool_latency_ms[:0], pool_latency_ms[:0])
    limit = np.inf if budget_ms is None else float(np.max(budget_ms))
    taken = np.concatenate([observed.features, pending.features])
    free = (pool_latency_ms <= limit) & ~_contained(pool_features, taken)
    begun = np.concatenate([observed.latency_ms, pending.latency_ms])
    chosen: list[int] = []
    while len(chosen) < count and len(begun) < settings.start and free.any():
        index = _start(pool_latency_ms, free, begun, settings.start, rng)
        chosen.append(index)
        free[index] = False
        begun = np.append(begun, pool_latency_ms[index])
    if len(chosen) == count or not free.any():
        return chosen
    scored = observed.scored
    if len(scored.accuracy) == 0:
        return chosen + _drawn(free, count - len(chosen), rng)
    ladder = _ladder(pool_latency_ms, budget_ms, settings.budgets)
    search = _Search(_limited(scored, settings.most), ladder, settings.hyperparameters)
    search.believe(pending.features, pending.latency_ms)
    search.believe(pool_features[chosen], pool_latency_ms[chosen])
    weight = np.ones(len(free)) if feasibility is None else feasibility
    rows = search.shortlist(np.flatnonzero(free), pool_features, pool_latency_ms, weight)
    while len(chosen) < count and free.any():
        left = rows[free[rows]]
        if rng.random() < settings.explore or left.size == 0:
            index = _drawn(free, 1, rng)[0]
        else:
            gain = weight[left] * search.gain(pool_features[left], pool_latency_ms[left])
            index = int(left[np.argmax(gain)])
        chosen.append(index)
        free[index] = False
        if len(chosen) < count:
            search.believe(pool_features[[index]], pool_latency_ms[[index]])
    return chosen


def recommend(observed: Observed, *, budget_ms: float | None = None) -> int | None:
    """Pick the best candidate that was scored: by the posterior's mean, not by its own lucky draw.

    Args:
        observed: what was scored.
        budget_ms: only candidates within it are picked.

    Returns:
        The index into `observed`; None if nothing was scored within the budget.
    """
    known = np.flatnonzero(np.isfinite(observed.accuracy))
    within = np.flatnonzero(
        observed.scored.latency_ms <= (np.inf if budget_ms is None else budget_ms)
    )
    if within.size == 0:
        return None
    scored = observed.scored
    fitted = _fitted(scored, None)
    mean = np.sum([weight * one.mean(scored.features) for weight, one in fitted], axis=0)
    return int(known[within[np.argmax(mean[within])]])


class _Search:
    """Expected improvement, averaged over likely hyperparameters.

    Snoek, Larochelle, Adams, Practical Bayesian optimization of machine learning algorithms, 2012,
    section 3.2, with a grid in place of samples.
    """

    def __init__(self, scored: Observed, ladder: Array, likely: Likely | None) -> None:
        doubt = _doubt(scored.accuracy, scored.latency_ms <= ladder[:, None])
        self._parts = [
            (weight, _Part(process, scored, ladder, doubt))
            for weight, process in _fitted(scored, likely)
        ]

    def believe(self, features: Array, latency_ms: Array) -> None:
        """Go on as if these had come out as expected."""
        for _, part in self._parts:
            part.believe(features, latency_ms)

    def gain(self, features: Array, latency_ms: Array) -> Array:
        """Return the expected improvement, summed over the ladder, (N,)."""
        squared = self._squared(features)
        gains = [share * part.gain(features, latency_ms, squared) for share, part in self._parts]
        return np.asarray(np.sum(gains, axis=0))

    def shortlist(
        self, rows: NDArray[np.intp], features: Array, latency_ms: Array, weight: Array
    ) -> NDArray[np.intp]:
        """Return the rows whose gain may be the largest, by an upper bound of it."""
        if len(rows) <= _SHORTLIST:
            return rows
        features, latency_ms = features[rows], latency_ms[rows]
        squared = self._squared(features)
        bounds = [share * part.bound(features, latency_ms, squared) for share, part in self._parts]
        bound = weight[rows] * np.sum(bounds, axis=0)
        return rows[np.argsort(-bound, kind="stable")[:_SHORTLIST]]

    def _squared(self, features: Array) -> Array:
        """Return squared distances to what was observed: all parts have observed the same."""
        return squared_distances(features, self._parts[0][1].observed)


class _Part:
    """A surrogate, and the best so far under each budget of the ladder."""

    def __init__(
        self, process: GaussianProcess, scored: Observed, ladder: Array, doubt: float
    ) -> None:
        self._process, self._ladder, self._doubt = process, ladder, doubt
        mean = self._process.mean(scored.features)
        within = scored.latency_ms <= ladder[:, None]
        # The posterior's mean, because with noise the largest target is a lucky one.
        self._best = np.where(within, mean, mean.min()).max(axis=1)

    def believe(self, features: Array, latency_ms: Array) -> None:
        """Go on as if these had come out as expected."""
        if len(features):
            mean = self._process.mean(features)
            self._process = self._process.believing(features)
            within = latency_ms <= self._ladder[:, None]
            self._best = np.maximum(self._best, np.where(within, mean, -np.inf).max(axis=1))

    @property
    def observed(self) -> Array:
        """Features, (n, F), of what was scored and of what is believed."""
        return self._process.features

    def gain(self, features: Array, latency_ms: Array, squared: Array) -> Array:
        """Return the expected improvement, summed over the ladder, (N,)."""
        return self._gain(*self._process.predict(features, squared), latency_ms)

    def bound(self, features: Array, latency_ms: Array, squared: Array) -> Array:
        """Return an upper bound of the gain, (N,)."""
        return self._gain(*self._process.bound(features, squared), latency_ms)

    def _gain(self, mean: Array, deviation: Array, latency_ms: Array) -> Array:
        """Expected improvement (Jones et al., Efficient global optimization, 1998, eq. 15)."""
        total, doubted = np.zeros(len(mean)), self._doubt * deviation
        # The ladder ascends, and rungs without a better observation than those below share a best.
        bests, first = np.unique(self._best, return_index=True)
        for best, rungs in zip(bests, np.split(self._ladder, first[1:]), strict=True):
            score = (mean - best) / doubted
            density = np.exp(-0.5 * score**2) / np.sqrt(2 * np.pi)
            kept = len(rungs) - np.searchsorted(rungs, latency_ms)
            total += kept * doubted * (density + score * ndtr(score))
        return total


def _fitted(scored: Observed, likely: Likely | None) -> list[tuple[float, GaussianProcess]]:
    features, accuracy = scored.features, scored.accuracy
    found = likely or Hyperparameters.of_accuracy(features, accuracy)
    return [
        (weight, GaussianProcess(features, TARGETS[one.targets](accuracy), one))
        for weight, one in found
    ]


def _doubt(accuracy: Array, within: Mask) -> float:
    """How much wider than the surrogate says its errors are taken to be.

    A surrogate that is sure of its best region and wrong about it proposes its neighbours for
    long. So the longer nothing has improved under any budget, the less it is believed.
    """
    best = np.maximum.accumulate(np.where(within, accuracy, -np.inf), axis=1)
    improved = np.flatnonzero((best[:, 1:] > best[:, :-1]).any(axis=0))
    idle = len(accuracy) - 1 - (improved[-1] + 1 if improved.size else 0)
    return float(np.clip(1 + (idle - _PATIENCE) / _LOSS_OF_TRUST, 1, _MOST_DOUBT))


def _start(
    latency_ms: Array,
    free: Mask,
    begun: Array,
    n_start: int,
    rng: np.random.Generator,
) -> int:
    """Draw from a stratum of latencies that was begun least often."""
    rows = np.flatnonzero(free)
    edges = np.quantile(latency_ms[rows], np.linspace(0, 1, n_start + 1)[1:-1])
    strata = np.searchsorted(edges, latency_ms[rows])
    visits = np.bincount(np.searchsorted(edges, begun), minlength=n_start)[strata]
    least = rng.choice(np.unique(strata[visits == visits.min()]))
    return int(rng.choice(rows[strata == least]))


def _ladder(latency_ms: Array, budget_ms: float | Sequence[float] | None, rungs: int) -> Array:
    if budget_ms is not None:
        return np.unique(np.asarray(budget_ms, dtype=np.float64))
    return np.unique(np.quantile(latency_ms, np.linspace(0, 1, rungs + 1)[1:]))


def _limited(scored: Observed, most: int) -> Observed:
    n = len(scored.accuracy)
    if n <= most:
        return scored
    best = np.argsort(-scored.accuracy, kind="stable")[: most // 2]
    newest = np.setdiff1d(np.arange(n), best)[-(most - most // 2) :]
    rows = np.union1d(best, newest)
    return Observed(scored.features[rows], scored.accuracy[rows], scored.latency_ms[rows])


def _drawn(free: Mask, count: int, rng: np.random.Generator) -> list[int]:
    rows = np.flatnonzero(free)
    return [int(row) for row in rng.choice(rows, min(count, len(rows)), replace=False)]


def _contained(rows: Array, among: Array) -> Mask:
    known = {row.tobytes() for row in among}
    return np.array([row.tobytes() in known for row in rows], dtype=bool)
