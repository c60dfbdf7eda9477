"""The fresh builds of one confirmation: made until they decide, kept, and used for each other.

A round builds each graph that is undecided once, in a process of its own for the round. What all
networks showed so far of how builds differ here says how sure the mean of each is
(`nas.latency.rebuilt`).

Every build is stored as it is measured. A confirmation that was killed finds its builds when it is
continued, under an equal environment; one that ended measures afresh when it is asked for again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from nas.latency.latency import Latency
from nas.latency.rebuilt import LEAST_CHANCE, Rebuilt, Spread
from nas.latency.timing import ClockSettings
from nas.results.bench import Bench
from nas.searcher.database import Database
from nas.searcher.engines import TrainedGraph
from nas.space.architecture import Candidate, digest_of
from nas.units import Budget

__all__ = ["KIND", "Builds", "is_settled"]

KIND = "builds"
"""How builds are marked in the database: a row for each, and one where a confirmation ended."""

_END: Mapping[str, Any] = {"ended": True}
_MOST_UNSETTLED = 3  # measurements of one graph; what settles no sooner counts as it is

_Graph = tuple[TrainedGraph, Candidate]


class Builds:
    """Builds graphs, and keeps what was measured.

    Args:
        bench: where they are built and measured.
        budget: that they are to keep.
        database: keeps them.
        study: whose winner is confirmed.
    """

    def __init__(self, bench: Bench, budget: Budget, database: Database, study: str) -> None:
        self._bench = bench
        self._budget = budget
        self._database = database
        self._study = study
        self._measured = self._stored()
        self._unsettled: Counter[str] = Counter()

    def rebuilt(self, graphs: Sequence[_Graph]) -> list[Rebuilt]:
        """Measure graphs anew, each in several builds and each build in a fresh process.

        There are three rounds, and up to six for a graph of which three builds do not say whether
        it surely keeps the budget. A measurement that the load of the machine kept from settling
        says little of its build, and is made again in another round.

        Raises:
            EngineError: no engine can be built.
            MeasurementError: the machine was too busy.
        """
        keys = [_key(one) for one in graphs]
        while waiting := [key for key in keys if not self._decided(key)]:
            for key, graph in zip(keys, graphs, strict=True):
                if key in waiting:
                    self._build(key, graph)
            self._bench.oracle.close()
        return [self._summary(key) for key in keys]

    def hopeless(self, latency: Latency) -> bool:
        """Whether a network of some latency has no chance to be found to keep the budget surely.

        Nothing is hopeless before there are builds that say how much they differ.

        Args:
            latency: as the search knows it.
        """
        spread = self.spread(latency)
        if spread is None or not self._bench.oracle.measures:
            return False
        return spread.of_another().chance_of(latency, self._budget) < LEAST_CHANCE

    def spread(self, latency: Latency, beside: str = "") -> Spread | None:
        """Return how much builds differ under the environment of a latency, as far as is known.

        Args:
            latency: of a network.
            beside: the graph that does not count.
        """
        return Spread.usual(
            builds
            for key, builds in self._measured.items()
            if key != beside and builds[0].environment == latency.environment
        )

    def end(self) -> None:
        """Mark that the confirmation ended: what was measured is of no use to the next one."""
        self._database.add_report(self._study, KIND, _END)

    def _stored(self) -> defaultdict[str, list[Latency]]:
        """Read what the confirmation that has not ended measured under the environments of now."""
        oracle = self._bench.oracle
        known = [oracle.environment(precision) for precision in oracle.precisions]
        environments = {one.digest: one for one in known}
        found: defaultdict[str, list[Latency]] = defaultdict(list)
        for row in _since_the_end(self._database.reports(self._study, KIND)):
            environment = environments.get(row["environment"])
            if environment is not None:
                interval = row["ms"], row["low_ms"], row["high_ms"]
                found[row["graph"]].append(Latency(*interval, "measured", environment))
        return found

    def _decided(self, key: str) -> bool:
        if key not in self._measured:
            return False
        return not self._bench.oracle.measures or self._summary(key).decided(self._budget)

    def _build(self, key: str, graph: _Graph) -> None:
        latency = self._bench.latency(*graph)
        if self._unsettled[key] < _MOST_UNSETTLED and not is_settled(latency):
            self._unsettled[key] += 1
            return
        self._measured[key].append(latency)
        if self._bench.oracle.measures:
            self._store(key, latency)

    def _store(self, key: str, latency: Latency) -> None:
        row = {
            "graph": key,
            "environment": latency.environment.digest,
            "ms": latency.ms,
            "low_ms": latency.low_ms,
            "high_ms": latency.high_ms,
        }
        self._database.add_report(self._study, KIND, row)

    def _summary(self, key: str) -> Rebuilt:
        builds = self._measured[key]
        return Rebuilt(tuple(builds), self.spread(builds[0], beside=key))


def _key(graph: _Graph) -> str:
    """Name a graph by all that its engine is built from."""
    trained, candidate = graph
    return digest_of([hashlib.sha256(trained.engine).hexdigest(), candidate.precision])


def _since_the_end(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the builds of the confirmation that has not ended, if there is one."""
    ends = [place for place, row in enumerate(rows) if row == _END]
    return list(rows[ends[-1] + 1 :] if ends else rows)


def is_settled(latency: Latency) -> bool:
    """Whether a measured interval is as narrow as a measurement aims at."""
    wanted = ClockSettings().half_width
    return latency.source != "measured" or (latency.high_ms - latency.low_ms) / 2 <= (
        wanted * latency.ms
    )
