"""Network -> latency: the cheapest answer that is good enough, which always names its source.

Where the device is attached, an answer is remembered if there is one; predicted if the prediction's
interval lies on one side of the budget, so that a measurement would decide nothing; and measured
otherwise. What is measured teaches the predictor. Where the device is elsewhere, a latency table
that was profiled on it answers; and where nothing was ever measured on it, its data sheet does.

A prediction's interval is conformal: it holds 95 % of networks that are drawn like the measured
ones. Those that a search proposes are not, so how many it really holds was measured, not proven
(docs/LOG.md); wrong decisions lie near the budget.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from nas.errors import UnknownNameError
from nas.latency.environment import Environment
from nas.latency.estimator import PRECISION, Estimator
from nas.latency.features import latency_features
from nas.latency.hardware import Hardware
from nas.latency.latency import ESTIMATED_LEVEL, MEASURED_LEVEL, Latency, Source
from nas.latency.meter import LatencyMeter
from nas.latency.parts import KnownParts
from nas.latency.predictor import LEAST_SAMPLES, LatencyPredictor, Prediction
from nas.latency.roofline import DevicePeaks
from nas.latency.table import LatencyTable
from nas.latency.transfer import TransferPredictor
from nas.latency.workload import Workload
from nas.space.architecture import Architecture
from nas.units import Budget

__all__ = ["EstimatingOracle", "LatencyOracle", "MeasuringOracle", "Network", "TableOracle"]

_Features = npt.NDArray[np.float64]
_REFIT = 1.1  # with a tenth more samples, a fit says something new


@dataclass(frozen=True)
class Network:
    """A network whose latency is asked for; it is exported only if that is needed.

    Args:
        key: names it, such as the digest of its architecture.
        export: makes its graph in fp32, with random weights.
        architecture: what it is; its features may then be known without a graph.
        parts: of the networks that were exported so far.
    """

    key: str
    export: Callable[[], bytes]
    architecture: Architecture | None = None
    parts: KnownParts = field(default_factory=KnownParts)

    @cached_property
    def onnx(self) -> bytes:
        """Its graph."""
        return self.export()

    @cached_property
    def workload(self) -> Workload:
        """What it makes a device do."""
        return Workload.from_onnx(self.onnx)

    @cached_property
    def features(self) -> _Features:
        """What predictions are made from, (F,)."""
        if self.architecture is None:
            return latency_features(self.workload)
        known = self.parts.find(self.architecture)
        return self.parts.learn(self.architecture, self.workload) if known is None else known


class LatencyOracle(ABC):
    """Answers what networks cost on one hardware.

    Args:
        hardware: the device.
        precisions: what may be asked for.
    """

    measures: ClassVar[bool] = False
    """Whether the device is attached."""

    level: ClassVar[float] = MEASURED_LEVEL
    """Confidence level of the intervals of its answers."""

    def __init__(self, hardware: Hardware, precisions: Sequence[str]) -> None:
        self.hardware = hardware
        self.precisions = tuple(precisions)

    @abstractmethod
    def environment(self, precision: str) -> Environment:
        """Return what answers in this precision are true for.

        Raises:
            UnknownNameError: the oracle does not answer in the precision.
        """

    @abstractmethod
    def answer(self, network: Network, precision: str, budget: Budget | None = None) -> Latency:
        """Return the latency of a network.

        Args:
            network: what is asked about.
            precision: one of `precisions`.
            budget: all that must be decided is whether the network keeps it; None asks for the
                surest answer.

        Raises:
            UnknownNameError: the oracle does not answer in the precision.
            EngineError: no engine can be built.
            ExportError: the network has no graph, or one that cannot be read.
            MeasurementError: the machine was too busy.
        """

    def confirm(self, network: Network, engine: bytes, precision: str) -> Latency:
        """Return the surest answer for a trained network, whatever was answered about it before.

        Args:
            network: what is asked about.
            engine: the graph that its engine is built from, such as one with calibrated scales.
            precision: one of `precisions`.

        Raises:
            As `answer`.
        """
        del engine
        return self.answer(network, precision)

    @property
    def drift(self) -> dict[str, float]:
        """As `LatencyMeter.drift`; nothing where nothing is measured."""
        return {}

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Free what is held. The oracle can be used again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require(self, precision: str) -> None:
        if precision not in self.precisions:
            raise UnknownNameError.of("precision", precision, self.precisions)


class MeasuringOracle(LatencyOracle):
    """Answers for a device that is attached: from memory, by prediction, or by measuring.

    Args:
        meter: measures, and remembers.
        predicts: whether a prediction that decides spares the measurement.
        table: measurements of an equal environment, that it begins with; by precision.
        prior: tables of other environments, whose predictions it begins with; by precision.

    Raises:
        InputError: a table belongs to another environment.
    """

    measures: ClassVar[bool] = True

    def __init__(
        self,
        meter: LatencyMeter,
        *,
        predicts: bool = True,
        table: Mapping[str, LatencyTable] | None = None,
        prior: Mapping[str, LatencyTable] | None = None,
    ) -> None:
        super().__init__(meter.hardware, meter.precisions)
        self.meter = meter
        self._predicts = predicts
        for precision, one in (table or {}).items():
            one.require(self.environment(precision))
        self._samples = {
            one: _Samples.of((table or {}).get(one), (prior or {}).get(one))
            for one in self.precisions
        }

    @property
    def drift(self) -> dict[str, float]:
        """As `LatencyMeter.drift`."""
        return self.meter.drift

    def environment(self, precision: str) -> Environment:
        """Return what answers in this precision are true for."""
        return self.meter.environment(precision)

    def answer(self, network: Network, precision: str, budget: Budget | None = None) -> Latency:
        """Return what is known; else a prediction, if it decides; else a measurement."""
        known = self.meter.find(precision, network.key)
        if known is None and budget is not None:
            predicted = self._prediction(network, precision)
            if predicted is not None and _decides(predicted, budget):
                return _latency(predicted, "predicted", self.environment(precision))
        found = known or self.meter.measure(network.onnx, precision, network.key)
        if self._predicts:
            self._samples[precision].add(network, found.ms)
        return found

    def confirm(self, network: Network, engine: bytes, precision: str) -> Latency:
        """Measure the engine's graph: neither reads nor writes what is known of the network."""
        del network
        return Latency.measured(self.meter.time(engine, precision), self.environment(precision))

    def close(self) -> None:
        """Free the engines of the reference network."""
        self.meter.close()

    def _prediction(self, network: Network, precision: str) -> Prediction | None:
        self._require(precision)
        return self._samples[precision].predict(network) if self._predicts else None


class TableOracle(LatencyOracle):
    """Answers for a device that is elsewhere, from tables that were profiled on it.

    Args:
        hardware: the device.
        tables: by precision.
    """

    def __init__(self, hardware: Hardware, tables: Mapping[str, LatencyTable]) -> None:
        super().__init__(hardware, tuple(tables))
        self._tables = dict(tables)
        self._predictors = {name: one.predictor() for name, one in tables.items()}

    def environment(self, precision: str) -> Environment:
        """Return what the table was measured under."""
        self._require(precision)
        return self._tables[precision].environment

    def answer(self, network: Network, precision: str, budget: Budget | None = None) -> Latency:
        """Return the table's own latency of the network, or a prediction from the others."""
        del budget  # there is no surer answer here than this one
        environment = self.environment(precision)
        if known := self._tables[precision].find(network.key):
            return known
        predicted = self._predictors[precision].predict(network.features)
        return _latency(predicted, "predicted", environment)


class EstimatingOracle(LatencyOracle):
    """Answers for a device that nothing was measured on here, from its data sheet.

    Args:
        hardware: the device.
        estimator: the one that comes with the package if None.

    Raises:
        InputError: the data sheet lacks a figure.
    """

    level: ClassVar[float] = ESTIMATED_LEVEL

    def __init__(self, hardware: Hardware, estimator: Estimator | None = None) -> None:
        super().__init__(hardware, (PRECISION,))
        self._peaks = DevicePeaks.of(hardware)
        self._estimator = estimator or Estimator.load()

    def environment(self, precision: str) -> Environment:
        """Return what was estimated: an engine of TensorRT alone, on such a device."""
        self._require(precision)
        return Environment(
            device=self.hardware.description,
            runtime=self.hardware.runtime,
            runtime_version="estimated",
            precision=precision,
            threads=1,
            protocol="hot",
            clock="none",
            reference="none",
        )

    def answer(self, network: Network, precision: str, budget: Budget | None = None) -> Latency:
        """Return the estimate of a network's real operator graph."""
        del budget  # as for tables
        environment = self.environment(precision)
        found = self._estimator.estimate(network.workload, self._peaks, precision)
        return Latency(found.ms, found.low_ms, found.high_ms, "estimated", environment)


@dataclass
class _Samples:
    """What was measured in one precision, and what that predicts."""

    prior: LatencyPredictor | None = None
    features: dict[str, _Features] = field(default_factory=dict)
    ms: dict[str, float] = field(default_factory=dict)
    _fitted: int = 0
    _predict: Callable[[_Features], Prediction] | None = None

    @classmethod
    def of(cls, table: LatencyTable | None, prior: LatencyTable | None) -> _Samples:
        samples = cls(prior.predictor() if prior else None)
        for row in table.rows if table else ():
            key = row.architecture.digest
            samples.features[key], samples.ms[key] = row.features, row.ms
        return samples

    def add(self, network: Network, ms: float) -> None:
        self.features[network.key], self.ms[network.key] = network.features, ms

    def predict(self, network: Network) -> Prediction | None:
        if len(self.ms) < LEAST_SAMPLES:
            return None
        if self._predict is None or len(self.ms) >= _REFIT * self._fitted:
            self._predict, self._fitted = self._fit(), len(self.ms)
        return self._predict(network.features)

    def _fit(self) -> Callable[[_Features], Prediction]:
        features, ms = np.stack(list(self.features.values())), np.array(list(self.ms.values()))
        if self.prior is None:
            return LatencyPredictor.fit(features, ms).predict
        return _Transferred.fitted(self.prior, features, ms).predict


@dataclass(frozen=True)
class _Transferred:
    """Predicts from what was measured here, and from what a table says of another environment."""

    there: LatencyPredictor
    model: TransferPredictor

    @classmethod
    def fitted(cls, there: LatencyPredictor, features: _Features, ms: _Features) -> _Transferred:
        known = np.array([[there.predict(row).ms] for row in features])
        return cls(there, TransferPredictor.fit(np.log1p(features), known, ms))

    def predict(self, features: _Features) -> Prediction:
        known = np.array([[self.there.predict(features).ms]])
        found = self.model.predict(np.log1p(features)[None], known)
        return Prediction(float(found.ms[0]), float(found.low_ms[0]), float(found.high_ms[0]))


def _decides(predicted: Prediction, budget: Budget) -> bool:
    return budget.admits(predicted.high_ms) or not budget.admits(predicted.low_ms)


def _latency(predicted: Prediction, source: Source, environment: Environment) -> Latency:
    return Latency(predicted.ms, predicted.low_ms, predicted.high_ms, source, environment)
