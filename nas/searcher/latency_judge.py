"""A candidate's latency: of its untrained network, because latency does not depend on the weights.

So it comes first, and costs no training.
"""

from __future__ import annotations

from functools import partial

from nas.latency.environment import Environment
from nas.latency.latency import Latency
from nas.latency.onnx_export import export_onnx
from nas.latency.oracle import LatencyOracle, Network
from nas.latency.parts import KnownParts
from nas.model.detector import Detector, profile
from nas.searcher.database import Database
from nas.space.architecture import Architecture, Candidate
from nas.units import Budget

__all__ = ["LatencyJudge", "untrained_onnx"]


class LatencyJudge:
    """Asks an oracle about candidates, and stores their description.

    Args:
        oracle: knows, predicts, measures or estimates.
        database: keeps the architectures, and the environments that answers are true for.
        space: digest of the space that the candidates belong to.
    """

    def __init__(self, oracle: LatencyOracle, database: Database, space: str) -> None:
        self._oracle = oracle
        self._database = database
        self._space = space
        self._parts = KnownParts()
        self._environments: set[str] = set()

    def __call__(self, candidate: Candidate, budget: Budget | None = None) -> Latency:
        """Return the latency of a candidate.

        Args:
            candidate: what is asked about.
            budget: see `LatencyOracle.answer`: if there is one, a prediction that decides will do.

        Raises:
            ExportError: the network has no ONNX form.
            EngineError: the engine cannot be built.
            MeasurementError: the machine was too busy to time it.
        """
        architecture = candidate.architecture
        counts = profile(architecture)
        self._database.add_architecture(
            architecture.digest,
            space=self._space,
            text=architecture.to_yaml(),
            parameters=counts.parameters,
            macs=counts.macs,
        )
        latency = self._oracle.answer(self.network(architecture), candidate.precision, budget)
        self._remember(latency.environment)
        return latency

    def network(self, architecture: Architecture) -> Network:
        """Return what oracles are asked about."""
        export = partial(untrained_onnx, architecture)
        return Network(architecture.digest, export, architecture, self._parts)

    def _remember(self, environment: Environment) -> None:
        if environment.digest not in self._environments:
            self._database.add_environment(environment.digest, environment.as_dict())
            self._environments.add(environment.digest)


def untrained_onnx(architecture: Architecture, batch: int = 1) -> bytes:
    """Export a candidate with random weights: enough to measure its latency."""
    return export_onnx(Detector(architecture).deploy(), *architecture.input, batch=batch)
