"""Our search, as a strategy like the others: what users get in `nas search`, on a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from nas.searcher.autonac import AutoNACSampler
from nas.searcher.proposing import Observed, encode, propose, recommend

from .optuna_search import OptunaSearch
from .strategies import Strategy
from .tables import Choice
from .tasks import Pool


class Ours(Strategy):
    """Expected improvement on ranks over all networks of the table.

    Args:
        pool: what may be queried.
        seed: of everything random.
        knows_budgets: whether it is told at which budgets a front is judged; else it advances the
            whole of it.
    """

    def __init__(self, pool: Pool, seed: int, *, knows_budgets: bool = False) -> None:
        super().__init__(pool, seed)
        self._budgets = pool.budgets_ms if knows_budgets else ()
        options = [choice.options for choice in pool.choices]
        numbers = np.stack([pool.latency_ms, pool.macs + 1.0], axis=1)
        self._features = encode(pool.codes, options, numbers)

    def ask(self) -> int:
        """Choose the network whose accuracy is expected to improve the most."""
        budget = self.pool.budget_ms if np.isfinite(self.pool.budget_ms) else None
        found = propose(
            self._features,
            self.pool.latency_ms,
            self._observed(),
            budget_ms=self._budgets or budget,
            rng=self.rng,
        )
        return found[0] if found else self.fresh()

    def pick(self) -> int:
        """Say which row the surrogate believes to be the best of those queried."""
        found = recommend(self._observed())
        return super().pick() if found is None else list(self.seen)[found]

    def _observed(self) -> Observed:
        rows = np.array(list(self.seen), dtype=np.intp)
        accuracy = np.array(list(self.seen.values()), dtype=np.float64)
        return Observed(self._features[rows], accuracy, self.pool.latency_ms[rows])


def through_optuna(pool: Pool, seed: int) -> Strategy:
    """Search by the sampler that users get, in a study of Optuna, which knows no table.

    It may propose what the table lacks: that counts as ten times slower than all networks.
    """
    return OptunaSearch(pool, seed, partial(_sampler, pool))


def _sampler(pool: Pool, seed: int) -> AutoNACSampler:
    return AutoNACSampler(
        search_space={choice.name: _distribution(choice) for choice in pool.choices},
        latency=partial(_latencies, pool),
        budget_ms=None if pool.budgets_ms else min(pool.budget_ms, float(pool.latency_ms.max())),
        front_share=float(bool(pool.budgets_ms)),
        seed=seed,
    )


def _distribution(choice: Choice) -> BaseDistribution:
    if choice.ordered:
        return IntDistribution(0, len(choice.options) - 1)
    return CategoricalDistribution(choice.options)


def _latencies(pool: Pool, points: Sequence[Mapping[str, Any]]) -> list[float]:
    rows = [pool.rows.get(_code(pool, point), -1) for point in points]
    found: list[float] = np.append(pool.latency_ms, 10 * pool.latency_ms.max())[rows].tolist()
    return found


def _code(pool: Pool, point: Mapping[str, Any]) -> tuple[int, ...]:
    taken = [(choice, point[choice.name]) for choice in pool.choices]
    return tuple(one if choice.ordered else choice.options.index(one) for choice, one in taken)
