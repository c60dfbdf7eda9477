"""A candidate's accuracy, from the weights that it shares with all others.

The mAP comes from an engine of the runtime and precision that are timed, built from the weights
that the supernet gives the candidate after its batch-norm statistics are recalibrated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas.accuracy.dataset import Dataset
from nas.accuracy.evaluate import Accuracy, Agreement
from nas.latency.clock import Elapsed
from nas.latency.runtimes.base import Runtime
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.searcher.database import Database
from nas.searcher.engines import (
    TrainedGraph,
    artifact_of,
    doubt_about,
    score_engine,
    trained_graph,
)
from nas.searcher.estimate import Estimate
from nas.searcher.fidelity import (
    LEAST_CHANCE,
    Parts,
    Rival,
    SubsetScore,
    compare,
    score_in_parts,
)
from nas.searcher.inherited import InheritedDetectors
from nas.searcher.progress import Listener, Silent
from nas.space.architecture import Architecture, Candidate

__all__ = ["AccuracyJudge"]


class AccuracyJudge:
    """Scores candidates on the validation split with the weights that a supernet gives them.

    Args:
        supernet: trained.
        weights_digest: which weights these are, for the database.
        dataset: whose training images recalibrate, and whose validation images score.
        runtime: builds the engines that are scored.
        database: keeps every result, so that no candidate is scored twice.
        listener: hears of engines that depart from their networks.
        statistics: folder where batch-norm statistics are kept; None keeps none.
        subset: validation images that `against` scores first; None: all at once.

    Attributes:
        weights: which weights in engines of which runtime, for the database.
    """

    def __init__(
        self,
        supernet: Supernet,
        weights_digest: str,
        dataset: Dataset,
        runtime: Runtime,
        database: Database,
        listener: Listener | None = None,
        statistics: Path | None = None,
        subset: int | None = None,
    ) -> None:
        self._inherited = InheritedDetectors(supernet, weights_digest, dataset.train, statistics)
        # Engines of two runtimes round differently, so each has its own accuracies.
        self.weights = f"{weights_digest}@{runtime.name}"
        self._dataset = dataset
        self._runtime = runtime
        self._database = database
        self._listener = listener or Silent()
        self._parts = Parts.of(dataset.validation, subset) if subset else None

    def __call__(self, candidate: Candidate) -> tuple[int, Accuracy]:
        """Return the row of the accuracy in the database, and the accuracy.

        Raises:
            ExportError: the network has no ONNX form.
            EngineError: see `score_engine`.
        """
        if stored := self.known(candidate):
            return stored
        elapsed = Elapsed()
        accuracy, _ = score_engine(
            self._graph(candidate),
            candidate,
            self._runtime,
            self._dataset.validation,
            weights="inherited",
        )
        self._warn(accuracy.agreement, candidate)
        return self._store(candidate, accuracy, elapsed.wall_s), accuracy

    def against(self, candidate: Candidate, rival: Rival | None) -> tuple[int, Accuracy] | Estimate:
        """Score a candidate on part of the images first, if this judge was told to.

        Args:
            candidate: to be scored.
            rival: what it has to beat; None if it joins the front whatever it reaches.

        Returns:
            The accuracy and its row; an estimate if the candidate hardly beats its rival.

        Raises:
            ExportError: the network has no ONNX form.
            EngineError: see `score_engine`.
        """
        known = self.known(candidate)
        if self._parts is None or known is not None:
            return known or self(candidate)
        if rival is None:
            whole = self._in_parts(candidate, self._parts, lambda _: True)[1]
            assert whole is not None
            return whole
        images, other = len(self._parts.whole), self._subset_score(rival.candidate, self._parts)

        def goes_on(score: SubsetScore) -> bool:
            return compare(score, other, images).chance >= LEAST_CHANCE

        first = self._find_subset_score(candidate, self._parts)
        if first is None or goes_on(first):
            first, whole = self._in_parts(candidate, self._parts, goes_on)
            if whole is not None:
                return whole
        return compare(first, other, images).estimate(rival.map50_95, first.images)

    def known(self, candidate: Candidate) -> tuple[int, Accuracy] | None:
        """Return what is stored about a candidate: its row and accuracy, if it was scored so."""
        stored = self._database.find_accuracy(
            candidate.architecture.digest,
            candidate.precision,
            data=self._dataset.digest,
            split="validation",
            weights="inherited",
            artifact=artifact_of(self._runtime),
            weights_digest=self.weights,
        )
        # Earlier versions stored accuracies of engines that nothing was compared with.
        return stored if stored is not None and stored[1].agreement is not None else None

    def detector(self, architecture: Architecture) -> Detector:
        """Extract a candidate from the supernet, with the running statistics of its own weights."""
        return self._inherited(architecture)

    def _graph(self, candidate: Candidate) -> TrainedGraph:
        return trained_graph(self.detector(candidate.architecture), candidate, self._dataset.train)

    def _in_parts(
        self, candidate: Candidate, parts: Parts, goes_on: Callable[[SubsetScore], bool]
    ) -> tuple[SubsetScore, tuple[int, Accuracy] | None]:
        """Score a candidate by `score_in_parts`, and store what comes of it."""
        elapsed = Elapsed()
        score, agreement, accuracy = score_in_parts(
            self._graph(candidate), candidate, self._runtime, parts, goes_on, weights="inherited"
        )
        self._warn(agreement, candidate)
        self._database.add_subset_score(
            **self._subset_key(candidate, parts),
            map50_95=score.map50_95,
            resampled=score.resampled.tolist(),
            seconds=elapsed.wall_s,
        )
        if accuracy is None:
            return score, None
        return score, (self._store(candidate, accuracy, elapsed.wall_s), accuracy)

    def _subset_score(self, candidate: Candidate, parts: Parts) -> SubsetScore:
        known = self._find_subset_score(candidate, parts)
        return known or self._in_parts(candidate, parts, lambda _: False)[0]

    def _find_subset_score(self, candidate: Candidate, parts: Parts) -> SubsetScore | None:
        row = self._database.find_subset_score(**self._subset_key(candidate, parts))
        return SubsetScore(row.map50_95, np.array(row.resampled), row.images) if row else None

    def _subset_key(self, candidate: Candidate, parts: Parts) -> dict[str, Any]:
        return {
            "architecture": candidate.architecture.digest,
            "precision": candidate.precision,
            "data": self._dataset.digest,
            "weights_digest": self.weights,
            "artifact": artifact_of(self._runtime),
            "images": len(parts.first),
        }

    def _warn(self, agreement: Agreement | None, candidate: Candidate) -> None:
        if agreement and (doubt := doubt_about(agreement, candidate.precision)):
            self._listener.say(doubt, warning=True)

    def _store(self, candidate: Candidate, accuracy: Accuracy, seconds: float) -> int:
        return self._database.add_accuracy(
            candidate.architecture.digest,
            candidate.precision,
            accuracy,
            data=self._dataset.digest,
            weights_digest=self.weights,
            seconds=seconds,
        )
