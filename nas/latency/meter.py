"""Graph -> latency, measured once: the meter remembers what it measured, and where.

A measurement is looked up under the candidate's key *and* the digest of the environment, so another
machine, runtime, version or protocol never answers for this one. What is not found is built and
timed against the reference network of the same runtime and precision, because engines of another
kind move differently with the load of the machine.

The reference's own time `R_0` is calibrated once per environment and kept in the store, so that
numbers of different days are on one scale. Each meter measures it again before its first answer;
`drift` tells how far it moved. That is a statement about the machine today, and no reason to
rescale: the ratio to the reference already took it out.

While it measures, it holds the lock of the device: see `nas.latency.device_lock`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from nas.errors import InputError, MeasurementError, UnknownNameError
from nas.latency.clock import Clock
from nas.latency.device_lock import DeviceLock
from nas.latency.environment import Environment
from nas.latency.hardware import Hardware
from nas.latency.latency import Latency
from nas.latency.measurer import Around, Measurer, Measures, protocol_around
from nas.latency.reference import reference_digest
from nas.latency.runtimes.base import Runtime
from nas.latency.store import MeasurementStore, MemoryStore
from nas.latency.timing import ClockSettings, ProtocolName, Timing
from nas.latency.worker import Limits, Worker

__all__ = ["LatencyMeter"]


@dataclass(frozen=True)
class _Scale:
    """The time of the reference network that the scale is fixed by, and how far it moved."""

    ms: float
    drift: float


@dataclass(frozen=True)
class _How:
    """How a meter measures: what its measurer and its environments have in common."""

    threads: int
    settings: ClockSettings | None
    seed: int
    protocol: ProtocolName
    batch: int
    uuid: str | None

    def measurer(self, runtime: Runtime, *, isolated: bool, limits: Limits | None) -> Measures:
        how = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Worker(runtime, **how, limits=limits) if isolated else Measurer(runtime, **how)

    def environment(
        self, runtime: Runtime, precision: str, device: str, protocol: str
    ) -> Environment:
        return Environment(
            device=device,
            runtime=runtime.name,
            runtime_version=runtime.version(),
            precision=precision,
            threads=self.threads,
            protocol=protocol,
            clock=Clock(threads=self.threads, on_cpu=runtime.on_cpu).name,
            reference=reference_digest(),
            batch=self.batch,
        )


def _trust(timing: Timing) -> tuple[bool, bool, float]:
    """Sorts the most trustworthy timing first."""
    return timing.disturbed, not timing.converged, timing.half_width


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
        protocol: how runs follow each other, `hot` or `buffered`; see `nas.latency.timing`.
        batch: images per run; graphs must take as many.
        around: what is timed with the network; nothing if None.
        strict: refuse figures of the wall clock on a processor that others use, too. Otherwise they
            are marked, and warned about.
        on_wait: hears that another process measures on the device; the log if None.

    Raises:
        UnknownNameError: the runtime does not have one of the precisions, or there is no such
            protocol.
        InputError: it is to be isolated, and another process cannot load the runtime; or the batch
            is not positive.
    """

    def __init__(  # noqa: PLR0913 - each of them makes the figures others
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
        protocol: ProtocolName = "hot",
        batch: int = 1,
        around: Around | None = None,
        strict: bool = False,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        if batch < 1:
            raise InputError(f"A run takes at least 1 image, got {batch}.")
        self.hardware = hardware
        self.runtime = runtime
        self.precisions = tuple(runtime.precisions if precisions is None else precisions)
        for precision in self.precisions:
            if precision not in runtime.precisions:
                kind = f"precision of {runtime.name}"
                raise UnknownNameError.of(kind, precision, runtime.precisions)
        self._store = MemoryStore() if store is None else store
        self._around = around
        self._strict = strict
        device = hardware.require_attached()
        self._lock = DeviceLock(device.uuid or device.text, on_wait=on_wait)
        how = _How(threads, settings, seed, protocol, batch, device.uuid)
        self._measurer: Measures = how.measurer(runtime, isolated=isolated, limits=limits)
        name = protocol_around(protocol, settings, around)
        self._environments = {
            one: how.environment(runtime, one, device.text, name) for one in self.precisions
        }
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
        with self._lock.held():
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
            onnx: graph in fp32 with one static input (batch, 3, H, W); its weights do not matter.
                For int8 it gets placeholder scales, unless it has scales of its own.
            precision: one of `precisions`.
            key: the candidate, such as the digest of its architecture.

        Raises:
            UnknownNameError: the meter was not made for the precision.
            InputError: the graph has another batch size.
            EngineError: no engine can be built.
            MeasurementError: other threads of this process kept disturbing, the clock does not
                work, the device is gone or another process keeps it; or others used the processor,
                and this meter is strict.
        """
        if known := self.find(precision, key):
            return known
        timing = self.time(onnx, precision)
        latency = Latency.measured(timing, self.environment(precision))
        self._store.add_latency(self._key(precision, key), latency, timing)
        return latency

    def time(self, onnx: bytes, precision: str) -> Timing:
        """Measure a graph, whatever is known: neither reads nor writes its latency.

        A measurement that does not converge is repeated once with another engine.

        Raises:
            As `measure`.
        """
        with self._lock.held():
            timing = self._time(onnx, precision)
            if not timing.converged or timing.disturbed:
                # Another build has other memory, and what disturbed the first one may be gone.
                timing = min(timing, self._time(onnx, precision), key=_trust)
        if timing.disturbed:
            self._complain(timing)
        return timing

    def close(self) -> None:
        """Free the reference engines. The meter can be used again, and calibrates again."""
        self._measurer.close()
        self._scales.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _time(self, onnx: bytes, precision: str) -> Timing:
        scale_ms = self._scale(precision).ms
        return self._measurer.measure(onnx, precision, scale_ms, self._around)

    def _complain(self, timing: Timing) -> None:
        remedy = "Measure on an idle machine, or with one thread, which is timed by CPU time."
        if self._strict:
            raise MeasurementError(
                f"Others kept {timing.other_load:.1f} CPUs busy while the wall clock ran.", remedy
            )
        # Without a figure, so that Python says it once and not for each candidate.
        said = "Others used the processor while the wall clock ran: latencies are too high."
        warnings.warn(f"{said} {remedy}", stacklevel=4)

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
