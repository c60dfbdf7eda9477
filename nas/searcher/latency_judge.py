"""A candidate's latency: of its untrained network, because latency does not depend on the weights.

So it comes first, and costs no training.
"""

from __future__ import annotations

from nas.latency.latency import Latency
from nas.latency.meter import LatencyMeter
from nas.latency.onnx_export import export_onnx
from nas.model.detector import Detector, profile
from nas.searcher.database import Database
from nas.space.architecture import Architecture, Candidate

__all__ = ["LatencyJudge", "untrained_onnx"]


class LatencyJudge:
    """Knows or measures the latency of candidates, and stores their description."""

    def __init__(self, meter: LatencyMeter, database: Database, space: str) -> None:
        self._meter = meter
        self._database = database
        self._space = space

    def __call__(self, candidate: Candidate) -> Latency:
        """Return the latency of a candidate: the stored one if there is one.

        Raises:
            ExportError: the network has no ONNX form.
            EngineError: the engine cannot be built.
            MeasurementError: the machine was too busy to time it.
        """
        architecture, precision = candidate.architecture, candidate.precision
        counts = profile(architecture)
        self._database.add_architecture(
            architecture.digest,
            space=self._space,
            text=architecture.to_yaml(),
            parameters=counts.parameters,
            macs=counts.macs,
        )
        known = self._meter.find(precision, architecture.digest)
        return known or self._meter.measure(
            untrained_onnx(architecture), precision, architecture.digest
        )


def untrained_onnx(architecture: Architecture) -> bytes:
    """Export a candidate with random weights: enough to measure its latency."""
    return export_onnx(Detector(architecture).deploy(), *architecture.input)
