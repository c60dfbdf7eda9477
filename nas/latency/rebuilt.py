"""One engine built anew several times: what the next build of it will take, and how surely.

A measurement's own interval is about one engine in one process. Another build lies elsewhere in
memory and beside another reference, and that moves a latency by up to a few percent (docs/LOG.md):
a promise about the engine on somebody's machine has to allow for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from nas.errors import InputError
from nas.latency.latency import MEASURED_LEVEL, Latency
from nas.units import Budget

__all__ = ["BUDGET_CONFIDENCE", "LEAST_BUILDS", "MOST_BUILDS", "Rebuilt"]

LEAST_BUILDS = 3
"""Builds before anything is said about the next one."""

MOST_BUILDS = 6
"""Builds of a network whose mean keeps the budget, and whose next build may not."""

BUDGET_CONFIDENCE = 0.99
"""With which a delivered engine keeps its budget: one fresh measurement in a hundred may not."""


@dataclass(frozen=True)
class Rebuilt:
    """The latencies of several builds of one graph, each measured in a process of its own.

    The logarithms x_1..x_k of the builds are taken as normal. A fresh build and measurement lies
    below mean(x) + t(p; k - 1) s sqrt(1 + 1 / k) with probability p: the prediction bound for one
    further observation (Hahn and Meeker, Statistical Intervals, 1991, chapter 4). s is the standard
    deviation between the builds, which holds the error of each measurement already; by chance it
    may come out below that error alone, and then the error stands for it.

    Args:
        builds: in the order in which they were measured; one where nothing can be measured.

    Raises:
        InputError: there is none, or they were not measured under one environment.
    """

    builds: tuple[Latency, ...]

    def __post_init__(self) -> None:
        environments = {one.environment for one in self.builds}
        if len(environments) != 1:
            raise InputError(
                "Builds of one graph are compared under one environment, "
                f"got {len(self.builds)} builds and {len(environments)} environments."
            )

    @property
    def ms(self) -> float:
        """Geometric mean of the builds."""
        return math.exp(float(np.mean(self._logs)))

    @property
    def spread(self) -> float:
        """Relative standard deviation of one fresh build and measurement; nan of a single one."""
        if len(self.builds) < 2:
            return math.nan
        normal = float(stats.norm.ppf((1 + MEASURED_LEVEL) / 2))
        widths = [math.log(one.high_ms / one.low_ms) / (2 * normal) for one in self.builds]
        within = math.sqrt(float(np.mean(np.square(widths))))
        return max(float(np.std(self._logs, ddof=1)), within)

    def bound_ms(self, confidence: float = BUDGET_CONFIDENCE) -> float:
        """Return what a fresh build and measurement stays below with a confidence.

        Of a single build, which tells nothing of the next one, it is the upper end of its interval.
        """
        if len(self.builds) < 2:
            return self.builds[0].high_ms
        return self.ms * math.exp(self._reach(confidence))

    def keeps(self, budget: Budget, confidence: float = BUDGET_CONFIDENCE) -> bool:
        """Whether a fresh build and measurement keeps a budget with a confidence."""
        return budget.admits(self.bound_ms(confidence))

    def decided(self, budget: Budget, most: int) -> bool:
        """Whether further builds, up to `most`, could not change what is said about a budget."""
        if len(self.builds) < LEAST_BUILDS:
            return False
        enough = len(self.builds) >= most or self.keeps(budget)
        return enough or not budget.admits(self.ms)

    @property
    def latency(self) -> Latency:
        """The mean, with the 95 % interval of a fresh build and measurement."""
        first = self.builds[0]
        if len(self.builds) < 2:
            return first
        reach = math.exp(self._reach((1 + MEASURED_LEVEL) / 2))
        return replace(first, ms=self.ms, low_ms=self.ms / reach, high_ms=self.ms * reach)

    @property
    def _logs(self) -> list[float]:
        return [math.log(one.ms) for one in self.builds]

    def _reach(self, confidence: float) -> float:
        count = len(self.builds)
        quantile = float(stats.t.ppf(confidence, count - 1))
        return quantile * self.spread * math.sqrt(1 + 1 / count)
