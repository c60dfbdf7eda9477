"""OpenVINO on the CPU: fp32, and bf16 where the processor computes in it.

OpenVINO treats a precision as a hint and answers a wish that the processor cannot fulfil with
another kernel, silently. So after compiling, the executable graph is read and the layers that do
the arithmetic must run in what was asked for.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import openvino

from nas.errors import EngineError
from nas.latency.runtimes.base import Engine, Images, Outputs, Runtime

__all__ = ["OpenVinoEngine", "OpenVinoRuntime"]

_DEVICE = "CPU"
_HINTS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}
_LIBRARY_NAMES = {"fp32": "f32", "bf16": "bf16"}
# The layers that hold nearly all the arithmetic. The others legitimately have other types: indices
# are integers, and inputs, outputs and weights before their reordering are fp32.
_ARITHMETIC = frozenset(
    {"Convolution", "Deconvolution", "FullyConnected", "GroupConvolution", "MatMul"}
)


class OpenVinoEngine(Engine):
    """A compiled model with one inference request. Made by `OpenVinoRuntime.build`."""

    def __init__(
        self,
        compiled: Any,
        input_shape: tuple[int, ...],
        precision: str,
        layers: dict[str, int],
    ) -> None:
        super().__init__(input_shape)
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._precision = precision
        self._layers = layers

    def _bind(self, images: Images) -> None:
        self._request.set_input_tensor(openvino.Tensor(images))

    def _run(self) -> None:
        # Shared: the outputs stay in the engine's memory, as in a C++ program.
        self._request.infer(share_outputs=True)

    def _outputs(self) -> Outputs:
        return {
            port.any_name: np.array(self._request.get_tensor(port).data, np.float32)
            for port in self._compiled.outputs
        }

    def _describe(self) -> dict[str, str]:
        layers = sorted(self._layers.items())
        return {
            "runtime": OpenVinoRuntime.name,
            "version": _version(),
            "precision": self._precision,
            "device": ",".join(self._compiled.get_property("EXECUTION_DEVICES")),
            "threads": str(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            "arithmetic layers": ", ".join(f"{count} {kind}" for kind, count in layers) or "none",
        }

    def _close(self) -> None:
        self._request = self._compiled = None


class OpenVinoRuntime(Runtime):
    """OpenVINO, one stream on the CPU."""

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")

    def version(self) -> str:
        """Return the release, such as `"2026.4.1"`."""
        return _version()

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
        }
        try:
            compiled = _core().compile_model(_core().read_model(onnx), _DEVICE, properties)
            layers = _arithmetic_layers(compiled)
            _verify(compiled, layers, precision, threads)
            return OpenVinoEngine(compiled, input_shape, precision, layers)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot build this graph in {precision}: {_reason(error)}",
                "Choose another runtime, or leave out the block that has this operator.",
            ) from error


@functools.cache
def _core() -> Any:
    # One core for the process: it owns the plug-in, and loading that costs more than a build.
    return openvino.Core()


def _version() -> str:
    return str(openvino.get_version()).split("-", 1)[0]


def _arithmetic_layers(compiled: Any) -> dict[str, int]:
    """Count the layers that hold the arithmetic by the type that they really compute in."""
    found: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        if info["layerType"].get() in _ARITHMETIC:
            found[info["runtimePrecision"].get()] += 1
    return dict(found)


def _verify(compiled: Any, layers: dict[str, int], precision: str, threads: int) -> None:
    """Raise unless precision, device and threads are the ones that were asked for.

    A bf16 engine may keep a minority of its layers in fp32: that is the compiler's decision, and
    `describe` reports it. An fp32 engine may not contain anything less.
    """
    devices = list(compiled.get_property("EXECUTION_DEVICES"))
    ran = compiled.get_property("INFERENCE_PRECISION_HINT")
    used = compiled.get_property("INFERENCE_NUM_THREADS")
    asked = layers.get(_LIBRARY_NAMES[precision], 0)
    others = sum(layers.values()) - asked
    truthful = others == 0 if precision == "fp32" else others <= asked
    if devices != [_DEVICE] or ran != _HINTS[precision] or used != threads or not truthful:
        raise EngineError(
            f"Asked OpenVINO for {precision} on {_DEVICE} with threads={threads}; it runs "
            f"{ran.get_type_name()} on {','.join(devices)} with threads={used}, "
            f"and its arithmetic layers are {layers}.",
            "Choose what this processor can do; fp32 with one thread runs everywhere.",
        )


def _reason(error: RuntimeError) -> str:
    """Return the last line of the library's message; the lines above are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
