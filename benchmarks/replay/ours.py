"""Our search, as a strategy like the others: what users get in `nas search`, on a table."""

from __future__ import annotations

import numpy as np

from nas.searcher.proposing import Observed, encode, propose, recommend

from .strategies import Strategy
from .tasks import Pool


class Ours(Strategy):
    """Expected improvement on ranks over all networks of the table.

    Args:
        pool: what may be queried.
        seed: of everything random.
        batch: how many networks are chosen between two looks at the answers.
    """

    def __init__(self, pool: Pool, seed: int, batch: int = 1) -> None:
        super().__init__(pool, seed)
        options = [choice.options for choice in pool.choices]
        numbers = np.stack([pool.latency_ms, pool.macs + 1.0], axis=1)
        self._features = encode(pool.codes, options, numbers)
        self._batch, self._waiting = batch, list[int]()

    def ask(self) -> int:
        """Take the next of a batch, and choose a new one if none is left."""
        if not self._waiting:
            budget = self.pool.budget_ms if np.isfinite(self.pool.budget_ms) else None
            self._waiting = propose(
                self._features,
                self.pool.latency_ms,
                self._observed(),
                count=self._batch,
                budget_ms=budget,
                rng=self.rng,
            )[::-1]
        return self._waiting.pop()

    def pick(self) -> int:
        """Say which row the surrogate believes to be the best of those queried."""
        found = recommend(self._observed())
        return super().pick() if found is None else list(self.seen)[found]

    def _observed(self) -> Observed:
        rows = np.array(list(self.seen), dtype=np.intp)
        accuracy = np.array(list(self.seen.values()), dtype=np.float64)
        return Observed(self._features[rows], accuracy, self.pool.latency_ms[rows])
