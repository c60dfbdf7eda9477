"""Graph -> latency, measured once: the meter remembers what it measured, and where.

A measurement is looked up under the candidate's key *and* the digest of the environment, so another
machine, runtime, version or protocol never answers for this one. What is not found is built and
timed against the reference network of the same runtime and precision, because engines of another
kind move differently with the load of the machine.

The reference's own time `R_0` is calibrated once per environment and kept in the store, so that
numbers of different days are on one scale. Each meter measures it again before its first answer;
`drift` tells how far it moved. That is a statement about the machine today, and no reason to
rescale: the ratio to the reference already took it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from nas.errors import UnknownNameError
from nas.latency.clock import PROTOCOL, Clock, ClockSettings, Timing
from nas.latency.environment import Environment
from nas.latency.hardware import Hardware
from nas.latency.latency import Latency
from nas.latency.measurer import Measurer, Measures
from nas.latency.reference import reference_digest
from nas.latency.runtimes.base import Runtime
from nas.latency.store import MeasurementStore, MemoryStore
from nas.latency.worker import Limits, Worker

__all__ = ["LatencyMeter"]


@dataclass(frozen=True)
class _Scale:
    """The time of the reference network that the scale is fixed by, and how far it moved."""

    ms: float
    drift: float


class LatencyMeter:
    """Measures what a network costs on one hardware with one runtime.

    Nothing else may run in this process while it measures, unless it is isolated; see
    `nas.latency.clock`.

    Args:
        hardware: what is measured.
        runtime: what builds the engines.
        precisions: what will be asked for; all of the runtime's if None.
        store: where measurements are kept; in memory if None.
        threads: threads per engine.
        settings: how long and how narrow a measurement is.
        seed: of the input images and of the bootstrap.
        isolated: build and measure in a child process, so that an engine which crashes, hangs or
            runs out of memory is an `EngineError`; see `nas.latency.worker`.
        limits: what one candidate may take there; the usual ones for the runtime if None.

    Raises:
        UnknownNameError: the runtime does not have one of the precisions.
        InputError: it is to be isolated, and another process cannot load the runtime.
    """

    def __init__(
        self,
        hardware: Hardware,
        runtime: Runtime,
        *,
        precisions: Sequence[str] | None = None,
        store: MeasurementStore | None = None,
        threads: int = 1,
        settings: ClockSettings | None = None,
        seed: int = 0,
        isolated: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.hardware = hardware
        self.runtime = runtime
        self.precisions = tuple(runtime.precisions if precisions is None else precisions)
        for precision in self.precisions:
            if precision not in runtime.precisions:
                kind = f"precision of {runtime.name}"
                raise UnknownNameError.of(kind, precision, runtime.precisions)
        self._store = MemoryStore() if store is None else store
        self._threads = threads
        self._measurer: Measures = (
            Worker(runtime, threads=threads, settings=settings, seed=seed, limits=limits)
            if isolated
            else Measurer(runtime, threads=threads, settings=settings, seed=seed)
        )
        self._environments = {one: self._environment(one) for one in self.precisions}
        self._scales: dict[str, _Scale] = {}

    @property
    def drift(self) -> dict[str, float]:
        """How far the reference moved since its calibration, by precision that was used so far.

        0.1 means that this machine is 10 % slower today. Large values do not spoil ratios, and do
        say that absolute milliseconds are those of another day.
        """
        return {precision: one.drift for precision, one in self._scales.items()}

    def environment(self, precision: str) -> Environment:
        """Return the environment that answers in this precision belong to.

        Raises:
            UnknownNameError: the meter was not made for the precision.
        """
        if precision not in self._environments:
            raise UnknownNameError.of("precision", precision, self.precisions)
        return self._environments[precision]

    def calibrate(self) -> dict[str, float]:
        """Check every precision against its stored calibration now; returns `drift`.

        Measuring does this by itself; calling it first finds out early what this machine lacks.

        Raises:
            EngineError: this machine cannot run one of the precisions.
            MeasurementError: other threads of this process kept disturbing.
        """
        for precision in self.precisions:
            self._scale(precision)
        return self.drift

    def find(self, precision: str, key: str) -> Latency | None:
        """Return what is known without measuring, so that nothing needs to be exported.

        Args:
            precision: one of `precisions`.
            key: the candidate, such as the digest of its architecture.

        Raises:
            UnknownNameError: the meter was not made for the precision.
        """
        found = self._store.find_latency(self._key(precision, key))
        return None if found is None else dataclasses.replace(found, source="cached")

    def measure(self, onnx: bytes, precision: str, key: str) -> Latency:
        """Return the latency of a graph, from the store if it is known there.

        Args:
            onnx: graph in fp32 with one static input (1, 3, H, W); its weights do not matter. For
                int8 it gets placeholder scales, unless it has scales of its own.
            precision: one of `precisions`.
            key: the candidate, such as the digest of its architecture.

        Raises:
            UnknownNameError: the meter was not made for the precision.
            EngineError: no engine can be built.
            MeasurementError: other threads of this process kept disturbing.
        """
        if known := self.find(precision, key):
            return known
        timing = self.time(onnx, precision)
        latency = Latency(
            timing.ms, timing.low_ms, timing.high_ms, "measured", self.environment(precision)
        )
        self._store.add_latency(self._key(precision, key), latency, timing)
        return latency

    def time(self, onnx: bytes, precision: str) -> Timing:
        """Measure a graph, whatever is known: neither reads nor writes its latency.

        A measurement that does not converge is repeated once with another engine.

        Raises:
            As `measure`.
        """
        first = self._time(onnx, precision)
        if first.converged:
            return first
        # Another build has other memory: what disturbed the first one for a second may be gone.
        second = self._time(onnx, precision)
        return second if second.converged or second.half_width < first.half_width else first

    def close(self) -> None:
        """Free the reference engines. The meter can be used again, and calibrates again."""
        self._measurer.close()
        self._scales.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _time(self, onnx: bytes, precision: str) -> Timing:
        return self._measurer.measure(onnx, precision, self._scale(precision).ms)

    def _environment(self, precision: str) -> Environment:
        return Environment(
            device=self.hardware.device(),
            runtime=self.runtime.name,
            runtime_version=self.runtime.version(),
            precision=precision,
            threads=self._threads,
            protocol=PROTOCOL,
            clock=Clock(threads=self._threads, on_cpu=self.runtime.on_cpu).name,
            reference=reference_digest(),
        )

    def _key(self, precision: str, key: str) -> str:
        return f"{key}@{self.environment(precision).digest}"

    def _scale(self, precision: str) -> _Scale:
        """Compare the reference with its calibration, once per meter."""
        if precision not in self._scales:
            digest = self.environment(precision).digest
            now = self._measurer.calibrate(precision)
            scale_ms = self._store.find_reference(digest)
            if scale_ms is None:
                self._store.add_reference(digest, now.ms, now.low_ms, now.high_ms)
                scale_ms = now.ms
            self._scales[precision] = _Scale(scale_ms, now.ms / scale_ms - 1)
        return self._scales[precision]
