"""The contract of a runtime: it turns an ONNX graph into an engine, and it never times anything.

Order of calls: `build`, then `bind` once, then `run` any number of times; `infer` at any time;
`close` last. After `close` every other call raises. Engines belong to the thread that built them.
`save` and `load` spare a build; an engine from elsewhere is refused (`saved.py`).

Two duties are the runtime's own, because nobody above can check them:

* **No silent fallback.** After building, `_build` asks its library what really runs. If that is not
  the precision, the device or the threads that were asked for, it raises `EngineError`.
* **A lean `_run`.** The clock times `run` and nothing else, so it does no conversion, no copy and
  no check that a deployed program would not do.

A new runtime subclasses both classes and fills in the underscored methods; arguments and states are
checked here. It is declared as an entry point in the group `nas.runtimes`, and is tested in three
lines by `nas.latency.runtimes.conformance.RuntimeConformance`.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self, final

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from nas.errors import EngineError, ExportError, UnknownNameError
from nas.latency.detection import cpu_name
from nas.latency.onnx_graph import (
    blamed_nodes,
    check_graph,
    half_weights,
    image_shape,
    parse_onnx,
    quantized_operators,
)
from nas.latency.runtimes.saved import Identity, SavedEngine

__all__ = ["Engine", "Images", "Outputs", "Runtime", "refusal"]

Images = npt.NDArray[np.float32]
"""Network input: float32 (N, 3, H, W), RGB in 0..1."""

Outputs = dict[str, npt.NDArray[np.float32]]
"""What a network returns, by the names in the ONNX graph."""


class Engine(ABC):
    """A network that is ready to run. Use it as a context manager, or call `close`.

    Args:
        input_shape: shape of the image input, (N, 3, H, W).

    Attributes:
        identity: what it is; None unless a runtime built or loaded it.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.input_shape = input_shape
        self.identity: Identity | None = None
        self._bound = False
        self._closed = False

    @final
    def bind(self, images: Images) -> None:
        """Make these images the input of every following `run`; they are copied.

        Args:
            images: float32 (N, 3, H, W), RGB in 0..1.

        Raises:
            EngineError: another shape or type than the input's, or the engine is closed.
        """
        self._require_open()
        if images.dtype != np.float32 or images.shape != self.input_shape:
            raise EngineError(
                f"The engine takes float32 images of shape {self.input_shape}, "
                f"got {images.dtype} {images.shape}."
            )
        self._bind(np.array(images, order="C"))
        self._bound = True

    @final
    def run(self) -> None:
        """Run once on the bound input and return when the outputs are there.

        Raises:
            EngineError: nothing is bound, or the engine is closed.
        """
        if not self._bound:
            self._require_bound()
        self._run()

    def synchronize(self) -> None:
        """Wait until nothing that `run` started is left to do.

        `run` returns when the outputs are there, so there is nothing to wait for; an engine that
        works ahead on a device overrides this.

        Raises:
            EngineError: the engine is closed.
        """
        self._require_open()

    @final
    def outputs(self) -> Outputs:
        """Copy the outputs of the latest `run`.

        Raises:
            EngineError: nothing is bound, or the engine is closed.
        """
        self._require_bound()
        return self._outputs()

    @final
    def infer(self, images: Images) -> Outputs:
        """Bind, run once, and copy the outputs.

        Args:
            images: float32 (N, 3, H, W), RGB in 0..1.

        Raises:
            EngineError: as `bind`.
        """
        self.bind(images)
        self.run()
        return self.outputs()

    @final
    def describe(self) -> dict[str, str]:
        """Say what really runs, as the library reports it.

        Always has `runtime`, `version`, `precision`, `device` and `threads`.

        Raises:
            EngineError: the engine is closed.
        """
        self._require_open()
        return self._describe()

    @final
    def save(self, path: Path) -> None:
        """Write the engine, so that `Runtime.load` has it back without a build.

        Args:
            path: of what the library writes; a file beside it, with `.json` appended to its name,
                says what it is true for.

        Raises:
            EngineError: the engine is closed, a file cannot be written, or the library cannot.
        """
        self._require_open()
        if self.identity is None:
            raise EngineError(
                "Only an engine that a runtime built can be saved.", "Make it by Runtime.build."
            )
        SavedEngine(self.identity, *self._saved()).write(path)

    @final
    def close(self) -> None:
        """Free the memory. May be called twice."""
        if not self._closed:
            self._closed, self._bound = True, False
            self._close()

    @abstractmethod
    def _bind(self, images: Images) -> None:
        """Take the images as input; they are C-contiguous and the engine's own."""

    @abstractmethod
    def _run(self) -> None:
        """Run once; this is what is timed."""

    @abstractmethod
    def _outputs(self) -> Outputs:
        """Copy the outputs."""

    @abstractmethod
    def _describe(self) -> dict[str, str]:
        """Ask the library what runs."""

    @abstractmethod
    def _saved(self) -> tuple[bytes, Mapping[str, str]]:
        """Return what `Runtime._load` needs: the library's bytes, and words beside them."""

    @abstractmethod
    def _close(self) -> None:
        """Drop whatever holds memory."""

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError("The engine is closed.", "Build it again.")

    def _require_bound(self) -> None:
        self._require_open()
        if not self._bound:
            raise EngineError("Nothing is bound to the input.", "Call bind(images) first.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Runtime(ABC):
    """A library that runs ONNX graphs.

    Class attributes:
        name: what the user types, equal to the entry point.
        precisions: what `build` accepts; the first one is the most exact and runs everywhere.
        on_cpu: whether a run computes in this process; CPU time says nothing about any other.
        tunes: whether building takes minutes on the processor, too, because it compiles.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    on_cpu: ClassVar[bool] = True
    tunes: ClassVar[bool] = False

    @abstractmethod
    def version(self) -> str:
        """Return the version of the library, as it belongs into an `Environment`."""

    def device(self) -> str:
        """Name the device that engines are built for: with all that an engine depends on."""
        return _processor() if self.on_cpu else _current_gpu()

    @final
    def build(self, onnx: bytes, precision: str, threads: int = 1) -> Engine:
        """Build an engine, and verify that it computes in the precision that was asked for.

        Args:
            onnx: a graph with one static input float32 (N, 3, H, W); for `int8` one that
                `nas.latency.quantization.quantize` wrote, for every other precision one in fp32.
            precision: one of `precisions`.
            threads: threads that it may use.

        Raises:
            UnknownNameError: the runtime does not have the precision.
            EngineError: the graph is broken or not supported, or something else would run.
        """
        if precision not in self.precisions:
            raise UnknownNameError.of(f"precision of {self.name}", precision, self.precisions)
        if threads < 1:
            raise EngineError(f"An engine needs at least 1 thread, got {threads}.")
        shape = _input_shape(onnx, precision)
        engine = self._build(onnx, shape, precision, threads)
        engine.identity = Identity(
            runtime=self.name,
            version=self._library(),
            device=self.device(),
            precision=precision,
            threads=threads,
            input_shape=shape,
        )
        return engine

    @final
    def load(self, path: Path) -> Engine:
        """Load what `Engine.save` wrote, and verify it as if it had been built.

        Args:
            path: that `Engine.save` was given.

        Raises:
            EngineError: a file is missing or broken, or the engine was built by another runtime or
                version or on another device.
        """
        saved = SavedEngine.read(path)
        saved.require(runtime=self.name, version=self._library(), device=self.device())
        engine = self._load(saved)
        engine.identity = saved.identity
        return engine

    def _library(self) -> str:
        """Return the version that a saved engine is bound to."""
        return self.version()

    @abstractmethod
    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        """Build and verify; the arguments are checked."""

    @abstractmethod
    def _load(self, saved: SavedEngine) -> Engine:
        """Load and verify; that it was built here is checked."""


def refusal(
    library: str, onnx: bytes, precision: str, reason: str, text: str | None = None
) -> EngineError:
    """Make the error of a library that does not build a graph.

    Args:
        library: as its users write it.
        onnx: the graph.
        precision: asked for.
        reason: what the library says, in one line.
        text: all that it says, if that is more: the nodes that it speaks of are named.
    """
    nodes = blamed_nodes(onnx, text or reason)
    return EngineError(
        f"{library} cannot build this graph in {precision}: {reason.rstrip('.')}."
        + (f" Nodes with this operator: {nodes}." if nodes else ""),
        "Choose another runtime, or leave out the block that has this operator.",
    )


@functools.cache
def _processor() -> str:
    return cpu_name()


def _current_gpu() -> str:
    from nas.latency.runtimes import cuda_device  # noqa: PLC0415 - imports torch

    return cuda_device.CudaDevice().text


def _input_shape(onnx: bytes, precision: str) -> tuple[int, ...]:
    """Check that the graph is one that an engine can be built from; its input shape."""
    try:
        model = parse_onnx(onnx)
        shape = image_shape(model)
        check_graph(onnx)
    except ExportError as error:
        raise EngineError(error.message, error.remedy) from error
    _check_types(model, precision)
    return shape


def _check_types(model: ModelProto, precision: str) -> None:
    """INT8 has its scales in the graph; every other precision is chosen by the builder."""
    operators = quantized_operators(model)
    if precision == "int8" and not operators:
        raise EngineError(
            "An int8 engine needs a graph that says what is quantised, this one has no "
            "QuantizeLinear.",
            "Pass the fp32 graph through nas.latency.quantization.quantize first.",
        )
    if precision != "int8" and operators:
        raise EngineError(
            f"A graph for {precision} is in fp32, this one has {', '.join(operators)}.",
            "Build it in int8, or export the network in fp32.",
        )
    if half_weights(model):
        raise EngineError(
            "The precision is chosen when an engine is built, but this graph has half-precision "
            "weights.",
            "Export the network in fp32.",
        )
