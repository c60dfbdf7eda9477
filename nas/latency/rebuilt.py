"""One engine built anew several times: what the next build of it will take, and how surely.

A measurement's own interval is about one engine in one process. Another build lies elsewhere in
memory and beside another reference, and that moves a latency by up to a few percent (docs/LOG.md):
a promise about the engine on somebody's machine has to allow for both.

How much builds differ is mostly a matter of the machine and of what else runs on it, so the builds
of other networks say it, too: with them, three builds decide what took six.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nas.errors import InputError
from nas.latency.latency import MEASURED_LEVEL, Latency
from nas.units import Budget

__all__ = [
    "ALIKE",
    "BUDGET_CONFIDENCE",
    "LEAST_BUILDS",
    "LEAST_CHANCE",
    "LEAST_NETWORKS",
    "MOST_BUILDS",
    "Rebuilt",
    "Spread",
]

LEAST_BUILDS = 3
"""Builds before anything is said about the next one."""

MOST_BUILDS = 6
"""Builds of a network whose mean keeps the budget, and whose next build may not."""

BUDGET_CONFIDENCE = 0.99
"""With which a delivered engine keeps its budget: one fresh measurement in a hundred may not."""

ALIKE = 5.0
"""How much alike networks are in their spread: as builds that many degrees of freedom are worth.

Variances of networks are taken as scaled inverse chi-squared with so many; the standard deviations
of two networks in three then lie within a factor of 1.4 of the usual one."""

LEAST_NETWORKS = 3
"""Networks that were built before they say anything of another one: one of them may be unlike."""

LEAST_CHANCE = 0.1
"""Where the chance that builds will be found to keep the budget surely is less, none is made."""


@dataclass(frozen=True)
class Spread:
    """How much fresh builds and measurements of one network differ.

    Attributes:
        deviation: relative standard deviation.
        freedom: degrees of freedom that it is known with.
    """

    deviation: float
    freedom: float

    @classmethod
    def usual(cls, networks: Iterable[Sequence[Latency]]) -> Self | None:
        """Estimate it from the builds of several networks; None if too few were built twice.

        The median of their variances in the logarithm, each over the median of chi-squared / f for
        its f degrees of freedom: a network that is unlike all others does not move it, as it would
        the mean. It is as sure as a mean from about half as many builds: of f = 2, the median of n
        variances has the relative variance 1 / (n ln^2 2), their mean 1 / n.
        """
        built = [one for one in networks if len(one) > 1]
        if len(built) < LEAST_NETWORKS:
            return None
        freedoms = [len(one) - 1 for one in built]
        usual = np.median(
            [
                np.var(_logs(one), ddof=1) * freedom / float(stats.chi2.median(freedom))
                for one, freedom in zip(built, freedoms, strict=True)
            ]
        )
        return cls(math.sqrt(float(usual)), math.log(2) ** 2 * sum(freedoms))

    def of_another(self) -> Spread:
        """Return what it says of a network that is not among those that it was learnt from.

        Relative variances add: 2 / f of this estimate, and 2 / D by which networks differ, where D
        is `ALIKE`. So it is worth 1 / (1 / f + 1 / D) degrees of freedom.
        """
        return Spread(self.deviation, 1 / (1 / self.freedom + 1 / ALIKE))

    def reach(self, confidence: float, builds: int) -> float:
        """Return how far above the mean of several builds a fresh one may lie, in logarithms."""
        quantile = float(stats.t.ppf(confidence, self.freedom))
        return quantile * self.deviation * math.sqrt(1 + 1 / builds)

    def chance(self, room: float, *, left: int, variance: float, error: float = 0.0) -> float:
        """Return the chance that builds in the end surely keep a budget.

        They do if the mean of all `MOST_BUILDS` lies its reach below the budget; what the reach
        will be is taken from the spread as it is known now.

        Args:
            room: log(budget / latency), from what is known of the latency.
            left: builds that are still to come.
            variance: of the final mean around what is known now, in variances of one build.
            error: standard deviation of what is known, beside that of builds.
        """
        final = Spread(self.deviation, self.freedom + left).reach(BUDGET_CONFIDENCE, MOST_BUILDS)
        around = math.hypot(self.deviation * math.sqrt(variance), error)
        if not around:
            return float(room >= final)
        return float(stats.t.cdf((room - final) / around, self.freedom))

    def chance_of(self, latency: Latency, budget: Budget) -> float:
        """Return the chance that a network which was never rebuilt will surely keep a budget.

        Args:
            latency: of one build, or predicted; then its interval is an error of its own.
            budget: to keep.
        """
        room = math.log(budget.latency_ms / latency.ms)
        built = latency.source in {"measured", "cached"}
        return self.chance(
            room,
            left=MOST_BUILDS - 1,
            variance=1 / MOST_BUILDS + built,  # a build that is none of those to come
            error=0.0 if built else _error(latency),
        )


@dataclass(frozen=True)
class Rebuilt:
    """The latencies of several builds of one graph, each measured in a process of its own.

    The logarithms x_1..x_k of the builds are taken as normal. A fresh build and measurement lies
    below mean(x) + t(p; f) s sqrt(1 + 1 / k) with probability p: the prediction bound for one
    further observation (Hahn and Meeker, Statistical Intervals, 1991, chapter 4). s is the standard
    deviation between the builds, which holds the error of each measurement already; by chance it
    may come out below that error alone, and then the error stands for it.

    Of this network alone, s has f = k - 1 degrees of freedom. If others were built, s^2 is the mean
    of its own variance and of theirs, weighted by degrees of freedom, d for theirs, and
    f = d + k - 1: the moderated variance of Smyth (Statistical Applications in Genetics and
    Molecular Biology 3, 2004, article 3, section 3), with d of `Spread.of_another`.

    What it assumes, and `tests/latency/test_rebuilt.py` tries out by simulation: builds are normal
    in the logarithm; networks spread alike up to `ALIKE`; and what one round does to all networks
    in it is at most half of the variance of a build. Measurements that did not settle are none of
    these, neither among the builds nor as the fresh one: they may lie anywhere.

    Args:
        builds: in the order in which they were measured; one where nothing can be measured.
        others: how much the builds of other networks differ, under the same environment.

    Raises:
        InputError: there is none, or they were not measured under one environment.
    """

    builds: tuple[Latency, ...]
    others: Spread | None = None

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
        return math.exp(float(_logs(self.builds).mean()))

    @property
    def spread(self) -> Spread | None:
        """How much fresh builds of it differ; unknown of a single one that nothing is beside."""
        known = [
            one for one in (self._own, self.others and self.others.of_another()) if one is not None
        ]
        freedom = sum(one.freedom for one in known)
        if not freedom:
            return None
        variance = sum(one.freedom * one.deviation**2 for one in known) / freedom
        within = math.sqrt(float(np.mean([_error(one) ** 2 for one in self.builds])))
        return Spread(max(math.sqrt(variance), within), freedom)

    @property
    def _own(self) -> Spread | None:
        freedom = len(self.builds) - 1
        return Spread(float(np.std(_logs(self.builds), ddof=1)), freedom) if freedom else None

    def bound_ms(self, confidence: float = BUDGET_CONFIDENCE) -> float:
        """Return what a fresh build and measurement stays below with a confidence.

        Of a single build, where nothing tells of the next one, it is the upper end of its interval.
        """
        if self.spread is None:
            return self.builds[0].high_ms
        return self.ms * math.exp(self.spread.reach(confidence, len(self.builds)))

    def keeps(self, budget: Budget, confidence: float = BUDGET_CONFIDENCE) -> bool:
        """Whether a fresh build and measurement keeps a budget with a confidence."""
        return budget.admits(self.bound_ms(confidence))

    def decided(self, budget: Budget) -> bool:
        """Whether further builds, up to `MOST_BUILDS`, can hardly change what is said of a budget.

        They cannot where it is surely kept, and where the chance that it will be is less than
        `LEAST_CHANCE`.
        """
        count = len(self.builds)
        if count < LEAST_BUILDS or self.spread is None:
            return False
        if count >= MOST_BUILDS or self.keeps(budget):
            return True
        room = math.log(budget.latency_ms / self.ms)
        variance = 1 / count - 1 / MOST_BUILDS  # of the final mean around that of the first ones
        chance = self.spread.chance(room, left=MOST_BUILDS - count, variance=variance)
        return chance < LEAST_CHANCE

    @property
    def latency(self) -> Latency:
        """The mean, with the 95 % interval of a fresh build and measurement."""
        first = self.builds[0]
        if self.spread is None:
            return first
        reach = math.exp(self.spread.reach((1 + MEASURED_LEVEL) / 2, len(self.builds)))
        return replace(first, ms=self.ms, low_ms=self.ms / reach, high_ms=self.ms * reach)


def _logs(builds: Sequence[Latency]) -> NDArray[np.float64]:
    return np.array([math.log(one.ms) for one in builds])


def _error(latency: Latency) -> float:
    """Return the standard deviation of the logarithm that an interval stands for."""
    normal = float(stats.norm.ppf((1 + latency.level) / 2))
    return math.log(latency.high_ms / latency.low_ms) / (2 * normal)
