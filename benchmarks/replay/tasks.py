"""What is searched for: a table, a device, budgets, and how many queries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nas.space.front import hypervolume

from .tables import Choice, Indices, Table, Values

_QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True, eq=False)
class Pool:
    """What is known before any query: all but the accuracies.

    Args:
        choices: d of them.
        codes: (n, d) index of every network's option.
        rows: codes -> row.
        latency_ms: (n,); all 1 if latency does not matter.
        macs: (n,) up to a factor.
        budget_ms: no network above it may be queried; infinite if the whole front is wanted.
        budgets_ms: those at which a front is judged; empty if one network is wanted.
    """

    choices: tuple[Choice, ...]
    codes: Indices
    rows: dict[tuple[int, ...], int]
    latency_ms: Values
    macs: Values
    budget_ms: float
    budgets_ms: tuple[float, ...]

    @cached_property
    def allowed(self) -> Indices:
        """Rows within the budget, ascending."""
        return np.flatnonzero(self.latency_ms <= self.budget_ms)

    @cached_property
    def n_allowed(self) -> int:
        """How many rows may be queried."""
        return len(self.allowed)

    def neighbours(self, row: int) -> list[int]:
        """Rows within the budget that differ from `row` in one choice."""
        code = self.codes[row].tolist()
        found = []
        for place, choice in enumerate(self.choices):
            for option in range(len(choice.options)):
                other = self.rows.get((*code[:place], option, *code[place + 1 :]))
                if other is not None and other != row and self.latency_ms[other] <= self.budget_ms:
                    found.append(other)
        return found


@dataclass(frozen=True, eq=False)
class Task:
    """One search to repeat with many seeds.

    Args:
        name: `table/device/goal`.
        table: networks with a latency on the device only.
        device: column of latencies; None if latency does not matter.
        budgets_ms: one, or those at which a front is judged, or none.
        front: whether the whole front is wanted.
        noise: standard deviation of every query, in points.
        queries: at most.
        tuned_on: whether anything was chosen by looking at these figures.
    """

    name: str
    table: Table
    device: str | None
    budgets_ms: tuple[float, ...]
    front: bool
    noise: float
    queries: int
    tuned_on: bool = False

    @cached_property
    def pool(self) -> Pool:
        """What a strategy is shown."""
        table, ones = self.table, np.ones(len(self.table.accuracy))
        single = not self.front and self.budgets_ms
        return Pool(
            table.choices,
            table.codes,
            table.rows,
            table.latency_ms[self.device] if self.device else ones,
            table.macs,
            self.budgets_ms[0] if single else np.inf,
            self.budgets_ms if self.front else (),
        )

    @property
    def limits(self) -> tuple[float, ...]:
        """Budgets at which regret is taken: infinity alone if there are none."""
        return self.budgets_ms or (np.inf,)

    @cached_property
    def optima(self) -> Values:
        """Best accuracy under each of the limits."""
        return np.array([self._accuracies(limit).max() for limit in self.limits])

    def _accuracies(self, limit: float) -> Values:
        found: Values = self.table.accuracy[self.pool.latency_ms <= limit]
        return found

    def regret(self, rows: list[int]) -> Values:
        """Mean over the limits of what the best row so far misses, after each query, in points.

        As long as nothing within a limit was queried, its worst network counts.
        """
        accuracy, latency = self.table.accuracy[rows], self.pool.latency_ms[rows]
        missed = np.zeros(len(rows))
        for limit, optimum in zip(self.limits, self.optima, strict=True):
            worst = self._accuracies(limit).min()
            missed += optimum - np.maximum.accumulate(np.where(latency <= limit, accuracy, worst))
        return missed / len(self.limits)

    def volume(self, rows: list[int]) -> Values:
        """Hypervolume after each query, as a share of the whole table's.

        The reference is the table's lowest accuracy and highest latency.
        """
        accuracy, latency = self.table.accuracy, self.pool.latency_ms
        corner = (float(accuracy.min()), float(latency.max()))
        whole = hypervolume(accuracy, latency, corner)
        counts = range(1, len(rows) + 1)
        shares = [hypervolume(accuracy[rows[:n]], latency[rows[:n]], corner) for n in counts]
        return np.array(shares) / whole


def median_budget(table: Table, device: str, queries: int, *, tuned_on: bool = False) -> Task:
    """Ask for the best network within the median latency of a device."""
    part = _measured(table, device)
    budget = float(np.median(part.latency_ms[device]))
    name = f"{table.name}/{device}/median"
    return Task(name, part, device, (budget,), False, 0.0, queries, tuned_on)


def unconstrained(table: Table, queries: int, noise: float = 0.0) -> Task:
    """Ask for the best network of the table."""
    name = f"{table.name}/any/{'noise' if noise else 'best'}"
    return Task(name, table, None, (), False, noise, queries)


def one_budget_each(
    table: Table, device: str, queries: int, *, tuned_on: bool = False
) -> list[Task]:
    """Ask for the best network within each of 8 budgets, one search a budget."""
    budgets = _budgets(table, device)
    prefix = f"{table.name}/{device}/budget"
    return [
        Task(f"{prefix}_{i}", table, device, (ms,), False, 0.0, queries, tuned_on)
        for i, ms in enumerate(budgets, 1)
    ]


def whole_front(table: Table, device: str, queries: int, *, tuned_on: bool = False) -> Task:
    """Ask in one search for what is best under each of the 8 budgets; no network is excluded."""
    name = f"{table.name}/{device}/front"
    return Task(name, table, device, _budgets(table, device), True, 0.0, queries, tuned_on)


def _budgets(table: Table, device: str) -> tuple[float, ...]:
    return tuple(float(ms) for ms in np.quantile(table.latency_ms[device], _QUANTILES))


def _measured(table: Table, device: str) -> Table:
    return table.select(~np.isnan(table.latency_ms[device]))
