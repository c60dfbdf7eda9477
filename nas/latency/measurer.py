"""From a graph to a timing: builds engines, keeps those of the reference network, runs the clock.

The meter has one in its own process, or one in another process behind `nas.latency.worker`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from nas.latency.clock import Calibration, Clock, ClockSettings, Timing
from nas.latency.quantization import at_precision
from nas.latency.reference import reference_onnx
from nas.latency.runtimes.base import Engine, Runtime

__all__ = ["Measurer", "Measures", "Stage"]

Stage = Literal["building", "running", "measuring"]
"""Building an engine, its first run, and timing it: what each may take differs."""


class Measures(Protocol):
    """Builds and times engines, somewhere."""

    def calibrate(self, precision: str) -> Calibration:
        """Time the reference network alone."""

    def measure(self, onnx: bytes, precision: str, reference_ms: float) -> Timing:
        """Build an engine and time it against the reference network."""

    def close(self) -> None:
        """Free what is held. It can be used again."""


def _silent(stage: Stage, what: str) -> None:
    del stage, what


class Measurer:
    """Builds and times engines in this process.

    Args:
        runtime: what builds the engines.
        threads: threads per engine.
        settings: how long and how narrow a measurement is.
        seed: of the input images and of the bootstrap.
        enter: hears which stage begins, and what it does.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        threads: int = 1,
        settings: ClockSettings | None = None,
        seed: int = 0,
        enter: Callable[[Stage, str], None] = _silent,
    ) -> None:
        self._runtime = runtime
        self._threads = threads
        self._seed = seed
        self._enter = enter
        self._clock = Clock(threads=threads, on_cpu=runtime.on_cpu, settings=settings, seed=seed)
        self._references: dict[str, Engine] = {}

    def calibrate(self, precision: str) -> Calibration:
        """Time the reference network alone.

        Raises:
            EngineError: its engine cannot be built.
            MeasurementError: other threads of this process kept disturbing.
        """
        reference = self._reference(precision)
        self._enter("measuring", f"the reference network in {precision} was calibrated")
        return self._clock.calibrate(reference.run)

    def measure(self, onnx: bytes, precision: str, reference_ms: float) -> Timing:
        """Build an engine and time it against the reference network.

        Args:
            onnx: graph in fp32, or in int8 if that is the precision.
            precision: one of the runtime's.
            reference_ms: the reference's own time, which sets the scale.

        Raises:
            EngineError: an engine cannot be built.
            ExportError: the graph is broken.
            MeasurementError: other threads of this process kept disturbing.
        """
        reference = self._reference(precision)
        what = f"the engine in {precision}"
        with self._ready(onnx, precision, what) as engine:
            self._enter("measuring", f"{what} was measured")
            return self._clock.measure(engine.run, reference.run, reference_ms)

    def close(self) -> None:
        """Free the reference engines. It can be used again."""
        for engine in self._references.values():
            engine.close()
        self._references.clear()

    def _reference(self, precision: str) -> Engine:
        if precision not in self._references:
            what = f"the reference network in {precision}"
            self._references[precision] = self._ready(reference_onnx(), precision, what)
        return self._references[precision]

    def _ready(self, onnx: bytes, precision: str, what: str) -> Engine:
        """Build an engine, bind its input, and run it once."""
        self._enter("building", f"{what} was built")
        engine = self._runtime.build(at_precision(onnx, precision), precision, self._threads)
        try:
            # Noise, not zeros: some kernels and most power limits treat zeros kindly.
            rng = np.random.default_rng(self._seed)
            engine.bind(rng.random(engine.input_shape, dtype=np.float32))
            self._enter("running", f"{what} ran for the first time")
            engine.run()
        except BaseException:
            engine.close()
            raise
        return engine
