"""A candidate's accuracy, from the weights that it shares with all others.

The mAP comes from an engine of the runtime and precision that are timed, built from the weights
that the supernet gives the candidate after its batch-norm statistics are recalibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from nas.accuracy.dataset import Dataset, Split, batches
from nas.accuracy.detections import Detections
from nas.accuracy.evaluate import Accuracy, Weights, evaluate
from nas.latency.clock import Elapsed
from nas.latency.onnx_export import export_onnx
from nas.latency.quantization import at_precision
from nas.latency.runtimes.base import Engine, Runtime
from nas.model.detector import Detector, needs_nms
from nas.model.supernet import Supernet, recalibrate
from nas.searcher.database import Database
from nas.space.architecture import Architecture, Candidate

__all__ = [
    "AccuracyJudge",
    "engine_graph",
    "engine_predictor",
    "recalibration_images",
    "score_engine",
    "trained_graph",
]

# 8 of them rank as well as 32 within error, in a quarter of the time (docs/LOG.md).
RECALIBRATION_BATCHES = 8
RECALIBRATION_BATCH_SIZE = 32
_CALIBRATION_IMAGES = 32  # of the scales of INT8 (docs/LOG.md)

_Predict = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]


class AccuracyJudge:
    """Scores candidates on the validation split with the weights that a supernet gives them.

    Args:
        supernet: trained.
        weights_digest: which weights these are, for the database.
        dataset: whose training images recalibrate, and whose validation images score.
        runtime: builds the engines that are scored.
        database: keeps every result, so that no candidate is scored twice.
    """

    def __init__(
        self,
        supernet: Supernet,
        weights_digest: str,
        dataset: Dataset,
        runtime: Runtime,
        database: Database,
    ) -> None:
        self._supernet = supernet
        self._weights_digest = weights_digest
        self._dataset = dataset
        self._runtime = runtime
        self._database = database

    def __call__(self, candidate: Candidate) -> tuple[int, Accuracy]:
        """Return the row of the accuracy in the database, and the accuracy.

        Raises:
            ExportError: the network has no ONNX form.
            EngineError: the engine cannot be built.
        """
        stored = self._database.find_accuracy(
            candidate.architecture.digest,
            candidate.precision,
            data=self._dataset.digest,
            split="validation",
            weights="inherited",
            artifact="engine",
            weights_digest=self._weights_digest,
        )
        if stored is not None:
            return stored
        elapsed = Elapsed()
        detector = self.detector(candidate.architecture)
        graph = trained_graph(detector, candidate, self._dataset.train)
        accuracy, _ = score_engine(
            graph, candidate, self._runtime, self._dataset.validation, weights="inherited"
        )
        row = self._database.add_accuracy(
            candidate.architecture.digest,
            candidate.precision,
            accuracy,
            data=self._dataset.digest,
            weights_digest=self._weights_digest,
            seconds=elapsed.wall_s,
        )
        return row, accuracy

    def detector(self, architecture: Architecture) -> Detector:
        """Extract a candidate from the supernet and recalibrate its batch-norm statistics."""
        detector = self._supernet.extract(architecture)
        recalibrate(detector, recalibration_images(self._dataset.train, architecture))
        return detector


def trained_graph(detector: Detector, candidate: Candidate, calibration: Split) -> bytes:
    """Export a trained detector as the graph that its engine is built from.

    Args:
        detector: with running statistics.
        candidate: its architecture, and the precision of the engine.
        calibration: see `engine_graph`.

    Raises:
        ExportError: the network has no ONNX form.
        MissingPackageError: ONNX Runtime, which calibrates, is not installed.
    """
    onnx = export_onnx(detector.deploy(), *candidate.architecture.input)
    return engine_graph(onnx, candidate, calibration)


def engine_graph(onnx: bytes, candidate: Candidate, calibration: Split) -> bytes:
    """Return the graph in the precision of a candidate.

    Args:
        onnx: the trained network in fp32.
        candidate: whose precision it is.
        calibration: training images; the scales of an INT8 graph come from the first of them.

    Raises:
        MissingPackageError: ONNX Runtime, which calibrates, is not installed.
    """
    if candidate.precision != "int8":
        return onnx
    images = calibration.resized(*candidate.architecture.input).images[:_CALIBRATION_IMAGES]
    return at_precision(onnx, candidate.precision, images.astype(np.float32) / np.float32(255))


def score_engine(
    onnx: bytes,
    candidate: Candidate,
    runtime: Runtime,
    split: Split,
    *,
    weights: Weights,
) -> tuple[Accuracy, list[Detections]]:
    """Build the engine of a trained graph and score it on a split, with a bootstrap interval.

    Returns:
        The accuracy, and the detections of each image in pixels of the original images.

    Raises:
        EngineError: the engine cannot be built.
        DatasetError: the split has no object to find.
    """
    with runtime.build(onnx, candidate.precision) as engine:
        return evaluate(
            engine_predictor(engine),
            split.resized(*candidate.architecture.input),
            weights=weights,
            artifact="engine",
            nms=needs_nms(candidate.architecture),
            interval=True,
        )


def engine_predictor(engine: Engine) -> _Predict:
    """Turn an engine for one image into what `evaluate` calls: uint8 (B, 3, H, W) in, boxes out."""

    def predict(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = [engine.infer(image[None].astype(np.float32) / 255) for image in images]
        return (
            np.concatenate([one["boxes"] for one in found]),
            np.concatenate([one["scores"] for one in found]),
        )

    return predict


def recalibration_images(split: Split, architecture: Architecture) -> Iterator[torch.Tensor]:
    """Yield the training images that batch-norm statistics are recalibrated on, float 0..1."""
    stream = batches(split.resized(*architecture.input), RECALIBRATION_BATCH_SIZE, seed=0)
    for _ in range(RECALIBRATION_BATCHES):
        images, _ = next(stream)
        yield images.float() / 255
