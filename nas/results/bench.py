"""A trained detector as it will be deployed: exported, checked, measured and scored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.detections import detect_batch, match_detections
from nas.accuracy.evaluate import Accuracy, Weights
from nas.latency.latency import Latency
from nas.latency.meter import LatencyMeter
from nas.latency.onnx_export import check_onnx, export_onnx
from nas.latency.runtimes.base import Runtime
from nas.model.detector import Detector, needs_nms
from nas.results.bundle import Agreement
from nas.searcher.evaluation import engine_graph, engine_predictor, score_engine
from nas.space.architecture import Candidate

__all__ = ["Bench"]

_CHECKED_IMAGES = 4
_COMPARED_IMAGES = 32


@dataclass(frozen=True)
class Bench:
    """Where a detector is examined before it is handed over.

    Attributes:
        dataset: whose images check and score.
        runtime: builds the engines.
        meter: measures them.
    """

    dataset: Dataset
    runtime: Runtime
    meter: LatencyMeter

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

    def agreement(self, detector: Detector, candidate: Candidate, onnx: bytes) -> Agreement:
        """Compare what the engine finds with what the fp32 network in torch finds.

        Args:
            detector: trained.
            candidate: its architecture, and the precision of the engine.
            onnx: the graph that the engine is built from.

        Raises:
            EngineError: the engine cannot be built.
        """
        resized = self.dataset.validation.resized(*candidate.architecture.input)
        images = resized.images[:_COMPARED_IMAGES]
        nms = needs_nms(candidate.architecture)
        with torch.inference_mode():
            boxes, scores = detector.deploy()(torch.from_numpy(images.astype(np.float32) / 255))
        exact = detect_batch(boxes.numpy(), scores.numpy(), nms=nms)
        with self.runtime.build(onnx, candidate.precision) as engine:
            found = detect_batch(*engine_predictor(engine)(images), nms=nms)
        share = match_detections(exact, found)
        return Agreement(None if math.isnan(share) else share, len(images))

    def latency(self, onnx: bytes, candidate: Candidate) -> Latency:
        """Measure a graph afresh, whatever is stored about its architecture.

        Raises:
            EngineError: no engine can be built.
            MeasurementError: the machine was too busy.
        """
        timing = self.meter.time(onnx, candidate.precision)
        environment = self.meter.environment(candidate.precision)
        return Latency(timing.ms, timing.low_ms, timing.high_ms, "measured", environment)

    def score(self, onnx: bytes, candidate: Candidate, split: Split, weights: Weights) -> Accuracy:
        """Score the engine of a graph on a split, with a bootstrap interval.

        Raises:
            DatasetError: the split has no object to find.
        """
        accuracy, _ = score_engine(onnx, candidate, self.runtime, split, weights=weights)
        return accuracy
