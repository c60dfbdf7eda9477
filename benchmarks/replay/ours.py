"""Our search: the sampler that users get, in a study of Optuna, asked for rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from nas.searcher.autonac import AutoNACSampler

from .optuna_search import OptunaSearch
from .tables import Choice
from .tasks import Pool


class Ours(OptunaSearch):
    """A search by `AutoNACSampler`, which knows all latencies and no table.

    What the table lacks counts as ten times slower than all networks, and is over every budget.

    Args:
        pool: what may be queried.
        seed: of everything random.
        knows_budgets: whether it is told at which budgets a front is judged; else it advances the
            whole of it.
    """

    def __init__(self, pool: Pool, seed: int, *, knows_budgets: bool = False) -> None:
        self._sampler: AutoNACSampler
        super().__init__(pool, seed, partial(self._made, pool, knows_budgets))

    def pick(self) -> int:
        """Say which row the surrogate believes to be the best of those queried."""
        found = self._sampler.recommend(self.study)
        return super().pick() if found is None else self.pool.rows[_code(self.pool, found.params)]

    def _made(self, pool: Pool, knows_budgets: bool, seed: int) -> AutoNACSampler:
        self._sampler = AutoNACSampler(
            search_space={choice.name: _distribution(choice) for choice in pool.choices},
            latency=partial(_latencies, pool),
            budget_ms=min(pool.budget_ms, float(pool.latency_ms.max())),
            budgets=pool.budgets_ms if knows_budgets else (),
            front_share=float(bool(pool.budgets_ms)),
            seed=seed,
        )
        return self._sampler


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
