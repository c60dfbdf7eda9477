"""From a graph to a timing: builds engines, keeps those of the reference network, runs the clock.

The meter has one in its own process, or one in another process behind `nas.latency.worker`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np

from nas.errors import InputError
from nas.latency.clock import Clock
from nas.latency.quantization import at_precision
from nas.latency.reference import reference_onnx
from nas.latency.runtimes.base import Engine, Runtime
from nas.latency.throttling import usual_watch
from nas.latency.timing import Calibration, ClockSettings, ProtocolName, Timing, protocol_name

__all__ = ["Around", "Measurer", "Measures", "Stage", "protocol_around"]

Stage = Literal["building", "running", "measuring"]
"""Building an engine, its first run, and timing it: what each may take differs."""


class Around(Protocol):
    """What is timed with a network: the work before and after it. Other rooms provide it.

    It is pickled if another process measures.
    """

    @property
    def name(self) -> str:
        """What is timed, such as `"end to end from 480x640"`: everything in it that costs time."""

    def __call__(self, engine: Engine) -> Callable[[], object]:
        """Return what runs once, the network included, and returns when its result is there."""

    def parts(self, engine: Engine) -> Mapping[str, Callable[[], object]]:
        """Return what it consists of, by name; each can be run by itself after a whole run."""


class Measures(Protocol):
    """Builds and times engines, somewhere."""

    def calibrate(self, precision: str) -> Calibration:
        """Time the reference network alone."""

    def measure(
        self, onnx: bytes, precision: str, reference_ms: float, around: Around | None = None
    ) -> Timing:
        """Build an engine and time it against the reference network."""

    def close(self) -> None:
        """Free what is held. It can be used again."""


def protocol_around(
    protocol: ProtocolName, settings: ClockSettings | None = None, around: Around | None = None
) -> str:
    """Return the name of a protocol with what is timed around the network.

    Raises:
        UnknownNameError: there is no such protocol.
    """
    name = protocol_name(protocol, settings)
    return name if around is None else f"{name}, {around.name}"


def _silent(stage: Stage, what: str) -> None:
    del stage, what


class Measurer:
    """Builds and times engines in this process.

    Args:
        runtime: what builds the engines.
        threads: threads per engine.
        settings: how long and how narrow a measurement is.
        seed: of the input images and of the bootstrap.
        protocol: how runs follow each other.
        batch: images per run of a candidate; the reference network always takes one.
        uuid: of the GPU that is watched for throttling, if the runtime computes on one.
        enter: hears which stage begins, and what it does.

    Raises:
        UnknownNameError: there is no such protocol.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        threads: int = 1,
        settings: ClockSettings | None = None,
        seed: int = 0,
        protocol: ProtocolName = "hot",
        batch: int = 1,
        uuid: str | None = None,
        enter: Callable[[Stage, str], None] = _silent,
    ) -> None:
        self._runtime = runtime
        self._threads = threads
        self._seed = seed
        self._batch = batch
        self._enter = enter
        self._clock = Clock(
            threads=threads,
            on_cpu=runtime.on_cpu,
            protocol=protocol,
            settings=settings,
            seed=seed,
            watch=usual_watch(on_cpu=runtime.on_cpu, uuid=uuid),
        )
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

    def measure(
        self, onnx: bytes, precision: str, reference_ms: float, around: Around | None = None
    ) -> Timing:
        """Build an engine and time it against the reference network.

        Args:
            onnx: graph in fp32, or in int8 if that is the precision; input (batch, 3, H, W).
            precision: one of the runtime's.
            reference_ms: the reference's own time, which sets the scale.
            around: what is timed with the network; its parts are timed by themselves as well.

        Raises:
            InputError: the graph has another batch size.
            EngineError: an engine cannot be built.
            ExportError: the graph is broken.
            MeasurementError: other threads of this process kept disturbing, the clock does not
                work, or the device is gone.
        """
        reference = self._reference(precision)
        what = f"the engine in {precision}"
        with self._ready(onnx, precision, what) as engine:
            _require_batch(engine, self._batch)
            run = engine.run if around is None else around(engine)
            self._enter("measuring", f"{what} was measured")
            timing = self._clock.measure(run, reference.run, reference_ms)
            if around is None:
                return timing
            parts = {}
            for name, part in around.parts(engine).items():
                self._enter("measuring", f"the part {name!r} of {what} was measured")
                parts[name] = self._clock.measure(part, reference.run, reference_ms).ms
        protocol = f"{timing.protocol}, {around.name}"
        return dataclasses.replace(timing, protocol=protocol, parts_ms=parts)

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


def _require_batch(engine: Engine, batch: int) -> None:
    if engine.input_shape[0] != batch:
        raise InputError(
            f"The graph must take {batch} images per run, it takes {engine.input_shape[0]}.",
            "Export it with the batch size that is to be measured.",
        )
