"""From a trained detector to the accuracy of its engine, compared with the network in fp32.

Every engine that is scored is compared, by what both find in some images: a wrong engine would be
ranked or delivered with a figure of its own that says nothing about the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nas.accuracy.dataset import ResizedSplit, Split
from nas.accuracy.detections import Detections, match_detections
from nas.accuracy.evaluate import (
    Accuracy,
    Agreement,
    Artifact,
    Predict,
    Weights,
    detections_on,
    evaluate,
)
from nas.errors import EngineError
from nas.latency.onnx_export import export_onnx
from nas.latency.quantization import at_precision
from nas.latency.runtimes.base import Engine, Runtime
from nas.latency.runtimes.literal import LiteralRuntime
from nas.model.detector import Detector, needs_nms
from nas.space.architecture import Candidate

__all__ = [
    "COMPARED_IMAGES",
    "LEAST_AGREEMENT",
    "TrainedGraph",
    "agreement_of",
    "artifact_of",
    "doubt_about",
    "engine_predictor",
    "refuse_doubtful",
    "score_engine",
    "trained_graph",
]

_CALIBRATION_IMAGES = 32  # of the scales of INT8 (docs/LOG.md)

COMPARED_IMAGES = 16
"""At most so many images of a split compare an engine with fp32."""

LEAST_AGREEMENT = {"fp32": 0.95, "bf16": 0.9, "fp16": 0.9, "int8": 0.8}
"""An engine that finds less than this share as its network in fp32 does is doubtful."""


@dataclass(frozen=True, eq=False)
class TrainedGraph:
    """A trained network, in the forms that an engine is built from and compared with.

    Attributes:
        module: the fused network in torch.
        fp32: the same as ONNX.
        engine: the same in the precision of the engine.
    """

    module: nn.Module
    fp32: bytes
    engine: bytes


def trained_graph(
    detector: Detector, candidate: Candidate, calibration: Split, *, slim: bool = False
) -> TrainedGraph:
    """Export a trained detector as the graph that its engine is built from.

    Args:
        detector: with running statistics.
        candidate: its architecture, and the precision of the engine.
        calibration: training images; the scales of an INT8 graph come from the first of them.
        slim: see `export_onnx`.

    Raises:
        ExportError: the network has no ONNX form.
        MissingPackageError: ONNX Runtime, which calibrates, is not installed.
    """
    size = candidate.architecture.input
    deployed = detector.deploy()
    fp32 = export_onnx(deployed, *size, slim=slim)
    if candidate.precision != "int8":
        return TrainedGraph(deployed, fp32, fp32)
    images = calibration.resized(*size).images[:_CALIBRATION_IMAGES]
    pixels = images.astype(np.float32) / np.float32(255)
    return TrainedGraph(deployed, fp32, at_precision(fp32, candidate.precision, pixels))


def score_engine(
    graph: TrainedGraph,
    candidate: Candidate,
    runtime: Runtime,
    split: Split,
    *,
    weights: Weights,
) -> tuple[Accuracy, list[Detections]]:
    """Build the engine of a trained graph, score it on a split, and compare it with fp32.

    Returns:
        The accuracy with its bootstrap interval and the engine's agreement with the network in
        fp32, and the detections of each image in pixels of the original images.

    Raises:
        EngineError: the engine cannot be built, or is in fp32 and departs from its network.
        DatasetError: the split has no object to find.
    """
    resized = split.resized(*candidate.architecture.input)
    nms = needs_nms(candidate.architecture)
    with runtime.build(graph.engine, candidate.precision) as engine:
        accuracy, detections = evaluate(
            engine_predictor(engine),
            resized,
            weights=weights,
            artifact=artifact_of(runtime),
            nms=nms,
        )
    agreement = agreement_of(graph, resized, detections, nms=nms)
    refuse_doubtful(agreement, candidate.precision, runtime)
    return replace(accuracy, agreement=agreement), detections


def artifact_of(runtime: Runtime) -> Artifact:
    """Say what a runtime computes: an engine, or the graph that one would be built from."""
    return "graph" if isinstance(runtime, LiteralRuntime) else "engine"


def doubt_about(accuracy: Accuracy | Agreement, precision: str) -> str:
    """Say that an engine departs from its network more than its precision explains; else nothing.

    The bounds lie below what engines of trained networks reached (docs/LOG.md). Rounding is in the
    mAP of a reduced precision, so only its reader can say whether it is too much.
    """
    agreement = accuracy.agreement if isinstance(accuracy, Accuracy) else accuracy
    least = LEAST_AGREEMENT.get(precision, min(LEAST_AGREEMENT.values()))
    if agreement is None or agreement.share is None or agreement.share >= least:
        return ""
    return f"An engine in {precision} must find {least:.0%} as its network does: {agreement}."


def refuse_doubtful(agreement: Agreement, precision: str, runtime: Runtime) -> None:
    """Raise EngineError if an engine in fp32, which nothing excuses, departs from its network."""
    doubt = doubt_about(agreement, precision)
    if doubt and precision == "fp32":
        raise EngineError(doubt, f"Choose another runtime than {runtime.name}.")


def agreement_of(
    graph: TrainedGraph, split: ResizedSplit, found: list[Detections], *, nms: bool
) -> Agreement:
    """Compare what an engine found in a split with fp32, on images spread over it.

    With the network itself, so that an export that went wrong is found, too.
    """
    images = range(0, len(split), math.ceil(len(split) / COMPARED_IMAGES))
    predict = partial(_predict_in_torch, graph.module)
    expected = detections_on(predict, split, images, nms=nms)
    share = match_detections(expected, [found[index] for index in images])
    return Agreement(None if math.isnan(share) else share, len(images), "torch fp32")


def _predict_in_torch(
    module: nn.Module, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.inference_mode():
        boxes, scores = module(torch.from_numpy(images.astype(np.float32) / 255))
    return boxes.numpy(), scores.numpy()


def engine_predictor(engine: Engine) -> Predict:
    """Turn an engine for one image into what `evaluate` calls: uint8 (B, 3, H, W) in, boxes out."""

    def predict(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = [engine.infer(image[None].astype(np.float32) / 255) for image in images]
        return (
            np.concatenate([one["boxes"] for one in found]),
            np.concatenate([one["scores"] for one in found]),
        )

    return predict
