"""A trained detector as it will be deployed: exported, checked, measured and scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas.accuracy.bootstrap import resampled_map
from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.evaluate import Accuracy, Weights
from nas.latency.latency import Latency
from nas.latency.onnx_export import check_onnx
from nas.latency.oracle import LatencyOracle, Network
from nas.latency.runtimes.base import Runtime
from nas.model.detector import Detector
from nas.searcher.engines import TrainedGraph, score_engine, trained_graph
from nas.space.architecture import Candidate

__all__ = ["Bench"]

_CHECKED_IMAGES = 4


@dataclass(frozen=True)
class Bench:
    """Where a detector is examined before it is handed over.

    Attributes:
        dataset: whose images check and score.
        runtime: builds the engines.
        oracle: says what they cost.
    """

    dataset: Dataset
    runtime: Runtime
    oracle: LatencyOracle

    def graph(self, detector: Detector, candidate: Candidate) -> TrainedGraph:
        """Export in the candidate's precision; the fp32 graph computes what torch does.

        Raises:
            ExportError: it does not, on real images.
        """
        graph = trained_graph(detector, candidate, self.dataset.train, slim=True)
        resized = self.dataset.validation.resized(*candidate.architecture.input)
        for image in resized.images[:_CHECKED_IMAGES]:
            check_onnx(graph.fp32, graph.module, image[None].astype(np.float32) / 255)
        return graph

    def latency(self, graph: TrainedGraph, candidate: Candidate) -> Latency:
        """Measure a graph afresh, whatever is stored; or estimate it where the device is not here.

        Raises:
            EngineError: no engine can be built.
            MeasurementError: the machine was too busy.
        """
        network = Network(candidate.architecture.digest, lambda: graph.fp32)
        return self.oracle.confirm(network, graph.engine, candidate.precision)

    def score(
        self, graph: TrainedGraph, candidate: Candidate, split: Split, weights: Weights
    ) -> Accuracy:
        """Score the engine of a graph on a split, and compare it with fp32.

        Raises:
            EngineError: see `score_engine`.
            DatasetError: the split has no object to find.
        """
        return self.scored(graph, candidate, split, weights)[0]

    def scored(
        self, graph: TrainedGraph, candidate: Candidate, split: Split, weights: Weights
    ) -> tuple[Accuracy, list[float]]:
        """As `score`, with mAP50-95 on each resample of the images; equal draws for all networks.

        Raises:
            As `score`.
        """
        accuracy, found = score_engine(graph, candidate, self.runtime, split, weights=weights)
        return accuracy, resampled_map(found, split.annotations, seed=0).tolist()
