"""Optuna's samplers, asked for rows of a table.

They propose combinations of options. One that the table lacks, that is over the budget or that was
queried before costs no query; after so many in a row, a random network that was not queried is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import Trial

from .strategies import Strategy
from .tasks import Pool

REFUSALS = 100
"""How many proposals in a row may cost nothing."""


class OptunaSearch(Strategy):
    """A search by one of Optuna's samplers.

    With a front wanted, accuracy and latency are two objectives, else latency is a constraint.

    Args:
        pool: what may be queried.
        seed: of everything random.
        sampler: makes Optuna's sampler from a seed.
        refusals: how many proposals in a row may cost nothing.
    """

    def __init__(
        self,
        pool: Pool,
        seed: int,
        sampler: Callable[[int], BaseSampler],
        refusals: int = REFUSALS,
    ) -> None:
        super().__init__(pool, seed)
        optuna.logging.set_verbosity(logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
        directions = [up, down] if pool.budgets_ms else [up]
        self.study = optuna.create_study(sampler=sampler(seed), directions=directions)
        self._refusals = refusals
        self._trial: Trial | None = None

    def ask(self) -> int:
        """Ask until the proposal is new and allowed."""
        for _ in range(self._refusals):
            trial = self.study.ask()
            row = self._row(trial)
            if self._may_query(row):
                self._trial = trial
                return row
            self._refuse(trial, row)
        return self._any()

    def tell(self, row: int, accuracy: float) -> None:
        """Complete the trial."""
        super().tell(row, accuracy)
        if self._trial is not None:
            self._complete(self._trial, row, accuracy)
        self._trial = None

    def _row(self, trial: Trial) -> int:
        code = []
        for choice in self.pool.choices:
            if choice.ordered:
                code.append(trial.suggest_int(choice.name, 0, len(choice.options) - 1))
            else:
                taken = trial.suggest_categorical(choice.name, choice.options)
                code.append(choice.options.index(taken))
        return self.pool.rows.get(tuple(code), -1)

    def _may_query(self, row: int) -> bool:
        within = row >= 0 and self.pool.latency_ms[row] <= self.pool.budget_ms
        return within and row not in self.seen

    def _refuse(self, trial: Trial, row: int) -> None:
        if row in self.seen:
            self._complete(trial, row, self.seen[row])
        else:
            # The accuracy is not known: the median of those that are says least.
            self._complete(trial, row, float(np.median(list(self.seen.values() or [0.0]))))

    def _complete(self, trial: Trial, row: int, accuracy: float) -> None:
        exists, budget = row >= 0, self.pool.budget_ms
        latency = float(self.pool.latency_ms[row] if exists else self.pool.latency_ms.max())
        # Always both, in this order: GPSampler tells constraints apart by their place.
        excess = float(np.log(latency / budget)) if exists and np.isfinite(budget) else 0.0
        trial.set_constraint("latency", excess)
        trial.set_constraint("exists", 0.0 if exists else 1.0)
        self.study.tell(trial, [accuracy, latency] if self.pool.budgets_ms else accuracy)

    def _any(self) -> int:
        row = self.fresh()
        pairs = zip(self.pool.choices, self.pool.codes[row].tolist(), strict=True)
        taken = {
            choice.name: code if choice.ordered else choice.options[code] for choice, code in pairs
        }
        self.study.enqueue_trial(taken)
        self._trial = self.study.ask()
        self._row(self._trial)
        return row


def tpe(seed: int) -> BaseSampler:
    """Return the sampler that models all choices jointly."""
    return TPESampler(multivariate=True, constant_liar=True, seed=seed)


def nsga2(seed: int) -> BaseSampler:
    """Return the sampler with generations of 20: those of 50, the default, found less."""
    return NSGAIISampler(population_size=20, seed=seed)


def gp(seed: int) -> BaseSampler:
    """Return the sampler with its defaults."""
    return GPSampler(seed=seed, warn_independent_sampling=False)
