"""A trained detector as it will be deployed: exported, checked, measured and scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.evaluate import Accuracy, Weights
from nas.latency.onnx_export import check_onnx, export_onnx
from nas.latency.oracle import Latency, LatencyOracle
from nas.latency.runtimes.base import Runtime
from nas.model.detector import Detector
from nas.searcher.evaluation import engine_graph, score_engine
from nas.space.architecture import Candidate

__all__ = ["Bench"]

_CHECKED_IMAGES = 4


@dataclass(frozen=True)
class Bench:
    """Where a detector is examined before it is handed over.

    Attributes:
        dataset: whose images check and score.
        runtime: builds the engines.
        oracle: measures them.
    """

    dataset: Dataset
    runtime: Runtime
    oracle: LatencyOracle

    def graph(self, detector: Detector, candidate: Candidate) -> bytes:
        """Export in the candidate's precision, once the fp32 graph computes what torch does.

        Raises:
            ExportError: it does not, on real images.
        """
        height, width = candidate.architecture.input
        deployed = detector.deploy()
        onnx = export_onnx(deployed, height, width, slim=True)
        images = self.dataset.validation.resized(height, width).images[:_CHECKED_IMAGES]
        for image in images:
            check_onnx(onnx, deployed, image[None].astype(np.float32) / 255)
        return engine_graph(onnx, candidate, self.dataset.train)

    def latency(self, onnx: bytes, candidate: Candidate) -> Latency:
        """Measure a graph afresh, whatever is stored about its architecture.

        Raises:
            EngineError: no engine can be built.
            MeasurementError: the machine was too busy.
        """
        timing = self.oracle.time(onnx, candidate.precision)
        environment = self.oracle.environment(candidate.precision)
        return Latency(timing.ms, timing.low_ms, timing.high_ms, "measured", environment)

    def score(self, onnx: bytes, candidate: Candidate, split: Split, weights: Weights) -> Accuracy:
        """Score the engine of a graph on a split, with a bootstrap interval.

        Raises:
            DatasetError: the split has no object to find.
        """
        accuracy, _ = score_engine(onnx, candidate, self.runtime, split, weights=weights)
        return accuracy
