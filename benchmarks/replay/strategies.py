"""Ways to choose the next network, but for Optuna's samplers and ours.

All are asked for a row and told its accuracy. A row that was queried before may be asked for again:
it is answered from memory and costs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import numpy as np

from .tables import Values
from .tasks import Pool

_POPULATION, _TOURNAMENT = 20, 5


class Strategy(ABC):
    """One search.

    Args:
        pool: what may be queried.
        seed: of everything random.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool = pool
        self.rng = np.random.default_rng(seed)
        self.seen: dict[int, float] = {}

    @abstractmethod
    def ask(self) -> int:
        """Choose a row within the budget."""

    def tell(self, row: int, accuracy: float) -> None:
        """Take the answer to the last question."""
        self.seen[row] = accuracy

    def pick(self) -> int:
        """Say which row is believed to be the best: the one with the highest answer."""
        return max(self.seen, key=self.seen.__getitem__)

    def fresh(self) -> int:
        """Draw a row within the budget that was not queried."""
        left = np.setdiff1d(self.pool.allowed, list(self.seen))
        return int(self.rng.choice(left))


class RandomSearch(Strategy):
    """Every row once, in random order."""

    def ask(self) -> int:
        """Draw a new row."""
        return self.fresh()


class Evolution(Strategy):
    """Regularized evolution: a tournament's winner is changed in one choice, the oldest dies.

    Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019,
    algorithm 1, with 20 alive and tournaments of 5. Only changes within the budget are drawn; where
    there is none, a random network.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        super().__init__(pool, seed)
        self._alive: deque[tuple[float, int]] = deque(maxlen=_POPULATION)

    def ask(self) -> int:
        """Change a winner."""
        if len(self._alive) < min(_POPULATION, self.pool.n_allowed):
            return self.fresh()
        size = min(_TOURNAMENT, len(self._alive))
        entrants = self.rng.choice(len(self._alive), size, replace=False)
        near = self.pool.neighbours(max(self._alive[i] for i in entrants)[1])
        return int(self.rng.choice(near)) if near else self.fresh()

    def tell(self, row: int, accuracy: float) -> None:
        """Let the network live."""
        super().tell(row, accuracy)
        self._alive.append((accuracy, row))


class LocalSearch(Strategy):
    """All networks one choice away, then the best of them; from a random one again at an optimum.

    White et al., Local Search is State of the Art for Neural Architecture Search Benchmarks, 2020,
    algorithm 1. Networks over the budget are not queried.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        super().__init__(pool, seed)
        self._centre: int | None = None
        self._waiting: list[int] = []

    def ask(self) -> int:
        """Take the next of the neighbours."""
        while not self._waiting:
            if not self._climb():
                self._centre = None
                return self.fresh()
        return self._waiting.pop()

    def tell(self, row: int, accuracy: float) -> None:
        """Start from the network if the search has no place."""
        super().tell(row, accuracy)
        if self._centre is None:
            self._settle(row)

    def _climb(self) -> bool:
        if self._centre is None:
            return False
        near = self.pool.neighbours(self._centre)
        best = max(near, key=self.seen.__getitem__, default=self._centre)
        if self.seen[best] <= self.seen[self._centre]:
            return False
        self._settle(best)
        return True

    def _settle(self, row: int) -> None:
        self._centre = row
        near = [other for other in self.pool.neighbours(row) if other not in self.seen]
        self._waiting = self.rng.permutation(near).astype(int).tolist()


class Descending(Strategy):
    """The null models: the network within the budget that has the most of something comes first."""

    def __init__(self, pool: Pool, most_of: Values) -> None:
        super().__init__(pool, 0)
        allowed = pool.allowed
        self._order = allowed[np.argsort(most_of[allowed], kind="stable")].tolist()

    def ask(self) -> int:
        """Take the next."""
        return int(self._order.pop())


class InTurns(Strategy):
    """One search for each budget of a front, in turns; what one has queried is free to the others.

    A search goes on until it queries something new, then it is the turn of the next.
    """

    def __init__(self, parts: list[Strategy], pool: Pool) -> None:
        super().__init__(pool, 0)
        self._parts, self._turn = parts, 0

    def ask(self) -> int:
        """Ask the next search that may query more; if none may, a network over all budgets."""
        for _ in self._parts:
            if len(self._part.seen) < self._part.pool.n_allowed:
                return self._part.ask()
            self._turn += 1
        return self.fresh()

    def tell(self, row: int, accuracy: float) -> None:
        """Tell that search."""
        if self.pool.latency_ms[row] <= self._part.pool.budget_ms:
            self._part.tell(row, accuracy)
        if row not in self.seen:
            self._turn += 1
        super().tell(row, accuracy)

    @property
    def _part(self) -> Strategy:
        return self._parts[self._turn % len(self._parts)]


def in_turns(kind: Callable[[Pool, int], Strategy], pool: Pool, seed: int) -> Strategy:
    """Make one search of a kind, or one for each budget of a front."""
    if not pool.budgets_ms:
        return kind(pool, seed)
    parts = [kind(_within(pool, ms), seed * 97 + i) for i, ms in enumerate(pool.budgets_ms)]
    return InTurns(parts, pool)


def slowest(pool: Pool, _: int) -> Strategy:
    """Query the slowest networks within the budget, one after the other."""
    return Descending(pool, pool.latency_ms)


def most_macs(pool: Pool, _: int) -> Strategy:
    """Query the networks within the budget that multiply most."""
    return Descending(pool, pool.macs)


def _within(pool: Pool, budget_ms: float) -> Pool:
    table = (pool.choices, pool.codes, pool.rows, pool.latency_ms, pool.macs)
    return Pool(*table, budget_ms, ())
