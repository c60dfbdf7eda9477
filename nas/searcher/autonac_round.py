"""One proposal of `AutoNACSampler`: from the trials of a study to the point to try next.

Dimension letters: n points tried, N points of the pool, C choices, E figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.searcher.autonac_history import Choices, History, Params
from nas.searcher.proposing import ABSENT, Observed, Settings, propose, recommend
from nas.searcher.proposing.limits import Limit
from nas.searcher.proposing.pool import WHOLE, Conditions, edited, make_pool, saved_up, with_option
from nas.searcher.proposing.surrogate import Hyperparameters, Likely
from nas.space.front import front_indices

__all__ = ["Memory", "Question", "expected_best", "next_point"]

_Array = NDArray[np.float64]
_Codes = NDArray[np.intp]

_PARENTS = 8
_DRAWN = 800  # points that say how rare an option is within the budget
_RARE = 0.2  # of the share that it would have if all options fitted alike
_MOST_ATTEMPTS = 10  # trials with a rare option, before it counts as one that does not fit
_LAST_SHARE = 0.15  # of the evaluations, if their number is known: they go to the front's vicinity
_FEWEST_FIGURES = 4  # before latencies and constraints are predicted
_NEWEST_FIGURES = 200  # that latencies and constraints are predicted from
_ALL_OVER = 48  # points whose exact figures are taken, whatever was tried
_NEWEST_BOUNDED = 100  # points tried that exact figures are learned from beside them
_EQUIVALENTS = 8  # proposals at a time, once the first describes a candidate that was tried
_MOST_EQUIVALENTS = 15


@dataclass(frozen=True)
class Question:
    """What a search wants; the arguments of `AutoNACSampler`, which explains them."""

    latency: Callable[[Sequence[Params]], Sequence[float]] | None = None
    figures: Callable[[Sequence[Params]], _Array] | None = None
    key: Callable[[Params], Hashable] | None = None
    usage: Callable[[Params], Mapping[str, float]] | None = None
    budget_ms: float | None = None
    budgets: Sequence[float] = ()
    front_share: float = 1.0
    anchors: Sequence[Params] = ()
    n_trials: int | None = None


@dataclass(frozen=True)
class Memory:
    """What costs time to find again: it follows from the trials.

    Args:
        study: the name of the study whose trials they are.
        choices: that points are codes of.
    """

    study: str
    choices: Choices
    codes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    hyperparameters: dict[Hashable, Hyperparameters] = field(default_factory=dict)
    likely: dict[Hashable, Likely] = field(default_factory=dict)
    keys: dict[tuple[int, ...], Hashable] = field(default_factory=dict)
    usage: dict[tuple[int, ...], Mapping[str, float]] = field(default_factory=dict)


def next_point(
    question: Question, history: History, memory: Memory, rng: np.random.Generator
) -> dict[str, Any]:
    """Choose the parameters of the next trial; one that was tried only if nothing else is left."""
    choices = memory.choices
    for anchor in question.anchors:
        codes = np.array([choices.encode(anchor)], dtype=np.intp)
        if not history.repeats(codes, choices.sizes)[0]:
            return dict(anchor)
    return choices.decode(_Round(question, history, memory, rng).choose())


def expected_best(question: Question, history: History, memory: Memory) -> int | None:
    """Return the row of the scored point whose accuracy is expected to be the best.

    None if nothing was scored within the budget.
    """
    if len(history.scored) == 0:
        return None
    this = _Round(question, history, memory, np.random.default_rng(0))
    return this.recommended()


class _Round:
    def __init__(
        self,
        question: Question,
        history: History,
        memory: Memory,
        rng: np.random.Generator,
    ) -> None:
        self._question = question
        self._choices = memory.choices
        self._history = history
        self._memory = memory
        self._rng = rng
        # Both aims in turns: who names a budget wants its best most, and the front beside it.
        self._whole_front = rng.random() < question.front_share

    def choose(self) -> tuple[int, ...]:
        for make in (self._rare, self._pool):
            found = self._best_of(make())
            if found is not None:
                return found
        return tuple(self._rng.integers(self._choices.sizes).tolist())

    def recommended(self) -> int | None:
        """Choose among the points that were scored."""
        figures = self._figures(self._history.codes)
        columns = [] if figures is None else list(figures.T)
        numbers = np.stack([*columns, self._known_latency], axis=1)
        features = self._choices.encoding(self._history.codes, numbers)
        scored = self._history.scored
        found = recommend(self._observed(features, scored), budget_ms=self._budget)
        return None if found is None else int(scored[found])

    def _best_of(self, pool: _Codes) -> tuple[int, ...] | None:
        count = 1
        for _ in range(_MOST_EQUIVALENTS):
            if len(pool) == 0:
                return None
            rows = self._ranked(pool, count)
            for row in rows:
                point = tuple(pool[row].tolist())
                if self._key(point) not in self._tried_keys and self._keeps_bounds(point):
                    return point
            pool, count = np.delete(pool, rows, axis=0), _EQUIVALENTS
        return None

    def _rare(self) -> _Codes:
        """Return points with an option that was never scored, because few with it keep the budget.

        Nothing else proposes them: no draw and no step from what was scored leads there, and the
        surrogate has nothing to expect there. What matters most is what costs most: under a tight
        budget the largest input size that still fits is such an option. Each is scored once.
        """
        sizes, history = self._choices.sizes, self._history
        if not self._saves or len(history.scored) < Settings().start:
            return history.codes[:0]
        unscored = [
            (np.bincount(scored[scored != ABSENT], minlength=size) == 0)
            & (np.bincount(tried[tried != ABSENT], minlength=size) < _MOST_ATTEMPTS)
            for scored, tried, size in zip(
                history.codes[history.scored].T, history.codes.T, sizes, strict=True
            )
        ]
        if not any(options.any() for options in unscored):
            return history.codes[:0]
        drawn = self._rng.integers(sizes, size=(_DRAWN, len(sizes)))
        fitting = drawn[self._expected_latency(drawn) <= self._budget]
        for choice in self._rng.permutation(len(sizes)):
            shares = np.bincount(fitting[:, choice], minlength=sizes[choice])
            rare = shares < _RARE * len(fitting) / sizes[choice]
            for option in np.flatnonzero(rare & unscored[choice]):
                points, fixed = with_option(self._parents, int(choice), int(option), self._rng)
                limits = np.full(len(points), self._budget)
                if len(found := self._fresh(self._saved_up(points, fixed, limits))):
                    return found
        return history.codes[:0]

    @property
    def _saves(self) -> bool:
        """Whether points are brought within the budget, one choice against others."""
        large = math.prod(self._choices.sizes) > WHOLE
        return large and np.isfinite(self._budget) and not self._is_local

    def _pool(self) -> _Codes:
        sizes, parents = self._choices.sizes, self._parents
        pool = make_pool(sizes, parents, self._rng, local=self._is_local)
        if len(parents) and self._saves:
            points, fixed = edited(sizes, parents, self._rng)
            pool = np.concatenate([pool, self._saved_up(points, fixed, self._limits(len(points)))])
        return self._fresh(pool)

    def _fresh(self, pool: _Codes) -> _Codes:
        """Return the distinct points that exist and were not tried."""
        sizes = self._choices.sizes
        if (self._history.codes == ABSENT).any():
            pool = Conditions(self._history.codes).apply(pool, sizes, self._rng)
        pool = np.unique(pool, axis=0)
        if len(self._history.codes) == 0:
            return pool
        return np.asarray(pool[~self._history.repeats(pool, sizes)])

    def _saved_up(self, points: _Codes, fixed: NDArray[np.bool_], limits: _Array) -> _Codes:
        sizes = self._choices.sizes
        return saved_up(sizes, points, fixed, self._expected_latency, limits, self._rng)

    def _limits(self, count: int) -> _Array:
        """Return what points are brought within: the budget, or any latency of the front's."""
        if not self._whole_front:
            return np.full(count, self._budget)
        fastest = np.nanmin(self._known_latency)
        return self._rng.uniform(min(fastest, self._budget), self._budget, count)

    @cached_property
    def _is_local(self) -> bool:
        wanted = self._question.n_trials
        n_scored = len(self._history.scored)
        return wanted is not None and n_scored >= max((1 - _LAST_SHARE) * wanted, 1)

    @cached_property
    def _parents(self) -> _Codes:
        """The points that new ones are made from, (P, C): the best, and the front."""
        history, latency_ms = self._history, self._known_latency
        scored = history.scored
        scored = scored[~(latency_ms[scored] > self._budget)]
        if len(scored) == 0:  # toward what is feasible
            order = np.argsort(latency_ms, kind="stable")
            return np.asarray(history.codes[order[:_PARENTS]])
        accuracy = history.accuracy[scored]
        best = scored[np.argsort(-accuracy, kind="stable")[:_PARENTS]]
        if not self._whole_front:
            return np.asarray(history.codes[best])
        front = scored[front_indices(accuracy, np.nan_to_num(latency_ms[scored]))]
        return np.asarray(history.codes[self._rng.permutation(np.union1d(front, best))])

    def _ranked(self, pool: _Codes, count: int) -> list[int]:
        """Return rows of the pool, the most promising first."""
        n, encoding = len(self._history.codes), self._choices.encoding
        everything = np.concatenate([self._history.codes, pool])
        figures = self._figures(everything)
        features = encoding(everything, figures)
        latency_ms, admitted = self._latency(features[:n], features[n:], pool)
        admitted = admitted * self._constraints(features[:n], features[n:])
        within = self._within_bounds(pool)
        admitted = admitted * within
        columns = [] if figures is None else list(figures.T)
        known = np.concatenate([self._known_latency, latency_ms])
        features = encoding(everything, np.stack([*columns, known], axis=1))
        allowed = np.flatnonzero((latency_ms <= self._budget) & (within >= min(0.5, within.max())))
        rows = propose(
            features[n:][allowed],
            latency_ms[allowed],
            self._observed(features[:n], self._history.scored),
            count=count,
            budget_ms=self._rungs if self._whole_front else self._budget,
            rng=self._rng,
            pending=self._observed(features[:n], np.flatnonzero(self._history.running)),
            feasibility=admitted[allowed],
            settings=self._settings(figures),
        )
        if rows:
            return [int(allowed[row]) for row in rows]
        return [int(row) for row in np.argsort(-admitted, kind="stable")[:count]]

    def _observed(self, features: _Array, rows: NDArray[np.intp]) -> Observed:
        latency_ms = np.nan_to_num(self._known_latency[rows])
        return Observed(features[rows], self._history.accuracy[rows], latency_ms)

    def _settings(self, figures: _Array | None) -> Settings:
        scored = self._history.scored
        settings = Settings(explore=0.0) if self._is_local else Settings()
        if len(scored) < settings.start:
            return settings
        rows = scored[_fitted_rows(len(scored))]
        columns = [] if figures is None else list(figures[rows].T)
        numbers = np.stack([*columns, self._known_latency[rows]], axis=1)
        key = (len(rows), int(rows[-1]))
        memory = self._memory.likely
        if key not in memory:
            features = self._choices.encoding(self._history.codes[rows], numbers)
            memory[key] = Hyperparameters.of_accuracy(features, self._history.accuracy[rows])
        return replace(settings, hyperparameters=memory[key])

    @property
    def _budget(self) -> float:
        return np.inf if self._question.budget_ms is None else self._question.budget_ms

    @property
    def _rungs(self) -> list[float] | None:
        """The budgets that the front is wanted at; None for all of it."""
        return [one for one in self._question.budgets if one <= self._budget] or None

    @cached_property
    def _known_latency(self) -> _Array:
        """(n,) what was told, else computed, else NaN."""
        told = self._history.latency_ms
        if self._question.latency is None or np.isfinite(told).all():
            return told
        return np.where(np.isfinite(told), told, self._computed(self._history.codes))

    def _computed(self, codes: _Codes) -> _Array:
        assert self._question.latency is not None
        points = [self._choices.decode(row) for row in codes.tolist()]
        return np.asarray(self._question.latency(points), dtype=np.float64)

    def _figures(self, codes: _Codes) -> _Array | None:
        if self._question.figures is None:
            return None
        points = [self._choices.decode(row) for row in codes.tolist()]
        return np.asarray(self._question.figures(points), dtype=np.float64)

    def _latency(self, tried: _Array, pool: _Array, codes: _Codes) -> tuple[_Array, _Array]:
        """Return latencies of the pool in ms, and how probably they keep the budget, (N,) each."""
        if self._question.latency is not None:
            latency_ms = self._computed(codes)
            return latency_ms, (latency_ms <= self._budget).astype(np.float64)
        plain = self._question.figures is None  # then the features are the choices alone
        limit = self._latency_limit if plain else self._limit("latency", tried, self._known_latency)
        if limit is None:
            return np.zeros(len(pool)), np.ones(len(pool))
        return limit.judge(pool, self._budget)

    def _expected_latency(self, codes: _Codes) -> _Array:
        """Return what points may take, (N,) in ms; 0 as long as nothing is known."""
        if self._question.latency is not None:
            return self._computed(codes)
        limit = self._latency_limit
        features = self._choices.encoding(codes)
        return np.zeros(len(codes)) if limit is None else limit.median(features)

    @cached_property
    def _latency_limit(self) -> Limit | None:
        """Learn latencies from the choices alone: it is asked for many times in a round."""
        features = self._choices.encoding(self._history.codes)
        name = "latency" if self._question.figures is None else "latency of choices"
        return self._limit(name, features, self._known_latency)

    def _constraints(self, tried: _Array, pool: _Array) -> _Array:
        """Return the probability, (N,), that all constraints but the budget's are kept."""
        probability = np.ones(len(pool))
        for name, values in self._history.constraints.items():
            is_budget = name == "latency" and np.isfinite(self._budget)
            if not is_budget and name not in self._bounded and (values > 0).any():
                limit = self._limit(f"constraint {name}", tried, values)
                probability *= 1.0 if limit is None else limit.judge(pool, 0.0)[1]
        return probability

    def _within_bounds(self, pool: _Codes) -> _Array:
        """Return the probability, (N,), that a point keeps the bounds whose figures are exact.

        It is learned from points all over the space: one exact figure may take as long as an ask.
        """
        probability = np.ones(len(pool))
        if self._question.usage is None:
            return probability
        tried = self._history.codes[-_NEWEST_BOUNDED:]
        known = np.concatenate([_all_over(self._choices.sizes), tried])
        told = [self._usage(tuple(point)) for point in known.tolist()]
        features = self._choices.encoding(np.concatenate([known, pool]))
        for name in self._bounded:
            figures = np.array([one[name] for one in told], dtype=np.float64)
            key = f"bound {name}"
            memory = self._memory.hyperparameters
            if key not in memory:
                some = slice(_ALL_OVER)
                memory[key] = Limit.fit(features[some], figures[some])
            limit = Limit(features[: len(known)], figures, memory[key])
            probability *= limit.judge(features[len(known) :], 1.0)[1]
        return probability

    @cached_property
    def _bounded(self) -> tuple[str, ...]:
        """Names of the constraints whose figures are exact."""
        if self._question.usage is None:
            return ()
        return tuple(self._usage(tuple(_all_over(self._choices.sizes)[0].tolist())))

    def _usage(self, point: tuple[int, ...]) -> Mapping[str, float]:
        assert self._question.usage is not None
        known = self._memory.usage
        if point not in known:
            known[point] = self._question.usage(self._choices.decode(point))
        return known[point]

    def _keeps_bounds(self, point: tuple[int, ...]) -> bool:
        if self._question.usage is None:
            return True
        return all(value <= 1 for value in self._usage(point).values())

    def _limit(self, name: str, tried: _Array, figures: _Array) -> Limit | None:
        known = np.flatnonzero(np.isfinite(figures))
        if len(known) < _FEWEST_FIGURES:
            return None
        rows = known[_fitted_rows(len(known))]
        newest = known[-_NEWEST_FIGURES:]
        key = (name, len(rows), int(rows[-1]))
        memory = self._memory.hyperparameters
        if key not in memory:
            memory[key] = Limit.fit(tried[rows], figures[rows])
        return Limit(tried[newest], figures[newest], memory[key])

    def _key(self, point: tuple[int, ...]) -> Hashable:
        """What a point describes; itself, where nobody can say."""
        if self._question.key is None:
            return point
        keys = self._memory.keys
        if point not in keys:
            keys[point] = self._question.key(self._choices.decode(point))
        return keys[point]

    @cached_property
    def _tried_keys(self) -> set[Hashable]:
        if self._question.key is None:
            return set()
        return {self._key(tuple(point)) for point in self._history.codes.tolist()}


def _all_over(sizes: Sequence[int]) -> _Codes:
    """Draw the (_ALL_OVER, C) points that exact figures are taken of: always the same."""
    return np.random.default_rng(0).integers(sizes, size=(_ALL_OVER, len(sizes)))


def _fitted_rows(n: int) -> NDArray[np.intp]:
    """Choose what hyperparameters are fitted to, out of n: again after every tenth more.

    The choice depends on n alone, so that a search which was resumed makes the same.
    """
    m = n if n <= 10 else int(10 * 1.1 ** np.floor(np.log(n / 10) / np.log(1.1) + 1e-9))
    return np.arange(m)
