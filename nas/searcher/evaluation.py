"""A candidate's accuracy, from the weights that it shares with all others.

The mAP comes from an engine of the runtime and precision that are timed, built from the weights
that the supernet gives the candidate after its batch-norm statistics are recalibrated.
"""

from __future__ import annotations

from pathlib import Path

from nas.accuracy.dataset import Dataset
from nas.accuracy.evaluate import Accuracy
from nas.latency.clock import Elapsed
from nas.latency.runtimes.base import Runtime
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.searcher.database import Database
from nas.searcher.engines import artifact_of, doubt_about, score_engine, trained_graph
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
    ) -> None:
        self._inherited = InheritedDetectors(supernet, weights_digest, dataset.train, statistics)
        # Engines of two runtimes round differently, so each has its own accuracies.
        self.weights = f"{weights_digest}@{runtime.name}"
        self._dataset = dataset
        self._runtime = runtime
        self._database = database
        self._listener = listener or Silent()

    def __call__(self, candidate: Candidate) -> tuple[int, Accuracy]:
        """Return the row of the accuracy in the database, and the accuracy.

        Raises:
            ExportError: the network has no ONNX form.
            EngineError: see `score_engine`.
        """
        if stored := self.known(candidate):
            return stored
        elapsed = Elapsed()
        detector = self.detector(candidate.architecture)
        graph = trained_graph(detector, candidate, self._dataset.train)
        accuracy, _ = score_engine(
            graph, candidate, self._runtime, self._dataset.validation, weights="inherited"
        )
        if doubt := doubt_about(accuracy, candidate.precision):
            self._listener.say(doubt, warning=True)
        row = self._database.add_accuracy(
            candidate.architecture.digest,
            candidate.precision,
            accuracy,
            data=self._dataset.digest,
            weights_digest=self.weights,
            seconds=elapsed.wall_s,
        )
        return row, accuracy

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
