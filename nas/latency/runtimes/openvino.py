"""OpenVINO on the CPU: fp32, int8, and bf16 where the processor computes in it.

An int8 engine computes its other layers in bf16 where the processor has it, and else in fp32.

OpenVINO treats a precision as a hint and answers a wish that the processor cannot fulfil with
another kernel, silently. So after compiling, the executable graph is read and the layers that do
the arithmetic must run in what was asked for.

x86 processors without VNNI add two products of INT8 in 16 bits, where they saturate: of what fp32
found, a detector with 8-bit weights then found a tenth. There the weights of an engine get 7 bits,
with which nothing can saturate, and it found 98 %.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import openvino
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nas.errors import EngineError
from nas.latency.detection import cpu_flags
from nas.latency.onnx_graph import GraphView, parse_onnx
from nas.latency.runtimes.base import Engine, Images, Outputs, Runtime, refusal
from nas.latency.runtimes.saved import SavedEngine

__all__ = ["OpenVinoEngine", "OpenVinoRuntime"]

_DEVICE = "CPU"
_LIBRARY_NAMES = {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("i8", "u8")}
# Of the convolutions that a graph quantises, so many run in INT8 at least.
_LEAST_INT8_SHARE = 0.9
_QUANTIZED = "quantised convolutions"
_DOMAIN = "org.openvinotoolkit"
# SSSE3 brought the addition that saturates (PMADDUBSW), VNNI one in 32 bits.
_SATURATING = "ssse3"
_VNNI_SETS = frozenset({"avx_vnni", "avx512_vnni"})
_LEVELS, _NARROW_LEVELS = 127, 64  # 2 x 255 x 64 < 2^15
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
        quantized: int = 0,
        imported: bytes = b"",
    ) -> None:
        super().__init__(input_shape)
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._precision = precision
        self._layers = layers
        self._quantized = quantized
        self._imported = imported

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
        said = {
            "runtime": OpenVinoRuntime.name,
            "version": _version(),
            "precision": self._precision,
            "device": ",".join(self._compiled.get_property("EXECUTION_DEVICES")),
            "threads": str(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            "arithmetic layers": ", ".join(f"{count} {kind}" for kind, count in layers) or "none",
        }
        if self._quantized:
            said["int8 layers"] = f"{_count(self._layers, 'int8')} of {self._quantized} quantised"
        return said

    def _saved(self) -> tuple[bytes, Mapping[str, str]]:
        facts = {_QUANTIZED: str(self._quantized)}
        if self._imported:  # OpenVINO exports no imported model that it could read again
            return self._imported, facts
        try:
            return self._compiled.export_model().getvalue(), facts
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot save this engine: {_reason(error)}.") from error

    def _close(self) -> None:
        self._request = self._compiled = None


class OpenVinoRuntime(Runtime):
    """OpenVINO, one stream on the CPU."""

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

    def version(self) -> str:
        """Return the release, such as `"2026.4.1"`."""
        return _version()

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        quantized = 0
        if precision == "int8":
            onnx, quantized = _own_quantizers(onnx, narrow=_saturates())
        try:
            compiled = _core().compile_model(
                _core().read_model(onnx), _DEVICE, _properties(precision, threads)
            )
            return _verified(compiled, input_shape, precision, threads, quantized)
        except RuntimeError as error:
            raise refusal("OpenVINO", onnx, precision, _reason(error), str(error)) from error

    def _load(self, saved: SavedEngine) -> Engine:
        what = saved.identity
        properties = _properties(what.precision, what.threads)
        try:
            compiled = _core().import_model(saved.content, _DEVICE, properties)
            quantized = int(saved.facts[_QUANTIZED])
            return _verified(
                compiled,
                what.input_shape,
                what.precision,
                what.threads,
                quantized,
                saved.content,
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise EngineError(
                f"OpenVINO cannot load this engine: {_reason(error)}", "Build it again, here."
            ) from error


def _properties(precision: str, threads: int) -> dict[str, Any]:
    """Return what a model is compiled with; a saved engine does not remember it."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _hint(precision),
        # A pinned thread waits for its core while another one is idle: beside a busy neighbour,
        # that preempted it six times as often (docs/LOG.md).
        "ENABLE_CPU_PINNING": False,
    }


def _verified(
    compiled: Any,
    input_shape: tuple[int, ...],
    precision: str,
    threads: int,
    quantized: int,
    imported: bytes = b"",
) -> Engine:
    layers = _arithmetic_layers(compiled)
    _verify(compiled, layers, precision, threads, quantized)
    return OpenVinoEngine(compiled, input_shape, precision, layers, quantized, imported)


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


def _verify(
    compiled: Any, layers: dict[str, int], precision: str, threads: int, quantized: int = 0
) -> None:
    """Raise unless precision, device and threads are the ones that were asked for.

    A bf16 engine may keep a minority of its layers in fp32, and an int8 engine a tenth of those
    that its graph quantises: that is the compiler's decision, and `describe` reports it. An fp32
    engine may not contain anything less.
    """
    devices = list(compiled.get_property("EXECUTION_DEVICES"))
    ran = compiled.get_property("INFERENCE_PRECISION_HINT")
    used = compiled.get_property("INFERENCE_NUM_THREADS")
    asked = _count(layers, precision)
    others = sum(layers.values()) - asked
    truthful = {
        "fp32": others == 0,
        "bf16": others <= asked,
        "int8": asked >= max(_LEAST_INT8_SHARE * quantized, 1),
    }[precision]
    if devices != [_DEVICE] or ran != _hint(precision) or used != threads or not truthful:
        raise EngineError(
            f"Asked OpenVINO for {precision} on {_DEVICE} with threads={threads}; it runs "
            f"{ran.get_type_name()} on {','.join(devices)} with threads={used}, "
            f"and its arithmetic layers are {layers}.",
            "Choose what this processor can do; fp32 with one thread runs everywhere.",
        )


def _count(layers: dict[str, int], precision: str) -> int:
    return sum(layers.get(name, 0) for name in _LIBRARY_NAMES[precision])


def _hint(precision: str) -> Any:
    """Return the type of what is not INT8."""
    native = "BF16" in _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" or (precision == "int8" and native):
        return openvino.Type.bf16
    return openvino.Type.f32


def _saturates() -> bool:
    flags = cpu_flags()
    return _SATURATING in flags and _VNNI_SETS.isdisjoint(flags)


def _own_quantizers(onnx: bytes, *, narrow: bool = False) -> tuple[bytes, int]:
    """Write each pair of QuantizeLinear and DequantizeLinear as OpenVINO's own FakeQuantize.

    Left to read the pairs itself, OpenVINO (2026.4) loses their scale wherever they meet a
    concatenation, on processors without AMX: every such layer then computes on values rounded to
    whole numbers. Its own operator, with the same limits and steps, is not affected.

    Args:
        onnx: a graph in INT8.
        narrow: leave the weights 7 bits of their 8.

    Returns:
        The graph, and the number of convolutions in it whose weights are integers.

    Raises:
        EngineError: an activation is not quantised to int8 symmetrically with one scale.
    """
    model = parse_onnx(onnx)
    view = GraphView(model)
    nodes: list[NodeProto] = []
    replaced: set[str] = set()
    if narrow:
        _narrow_weights(model, view)
    for node in view.nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] not in view.constants:
            limits = _limits(view, node)
            model.graph.initializer.extend(limits)
            low, high = (one.name for one in limits)
            for pair in view.readers(node.output[0]):
                inputs = [node.input[0], low, high, low, high]
                nodes.append(
                    helper.make_node(
                        "FakeQuantize", inputs, pair.output, pair.name, domain=_DOMAIN, levels=256
                    )
                )
                replaced.add(pair.output[0])
        elif node.output[0] not in replaced:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return model.SerializeToString(), _quantized_convolutions(view)


def _limits(view: GraphView, quantizer: NodeProto) -> tuple[TensorProto, TensorProto]:
    """Return the least and the largest value that a quantizer to int8 lets pass."""
    names = quantizer.input[1:]
    values = [numpy_helper.to_array(view.constants[one]) for one in names if one in view.constants]
    pairs = {one.op_type for one in view.readers(quantizer.output[0])} == {"DequantizeLinear"}
    symmetric = len(values) == 2 and values[1].dtype == np.int8 and not values[1].any()
    if not (pairs and symmetric and values[0].size == 1):
        raise EngineError(
            "OpenVINO computes in int8 what is quantised symmetrically, with one scale and the "
            f"int8 zero point 0; {quantizer.name or quantizer.input[0]!r} is not.",
            "Quantise the fp32 graph with nas.latency.quantization.quantize.",
        )
    step = float(values[0].reshape(()))
    name = quantizer.output[0]
    return (
        numpy_helper.from_array(np.array(-128 * step, np.float32), f"{name}_low"),
        numpy_helper.from_array(np.array(127 * step, np.float32), f"{name}_high"),
    )


def _narrow_weights(model: ModelProto, view: GraphView) -> None:
    """Round the integers that a graph keeps as weights again, to -64..64."""
    shared = {node.output[0]: node for node in _integer_weights(view)}
    for node in shared.values():
        if not {*node.input[:2]} <= view.constants.keys():
            continue
        weights, scales = (numpy_helper.to_array(view.constants[one]) for one in node.input[:2])
        names = [f"{node.output[0]}_{name}" for name in ("narrow", "narrow_scale")]
        rounded = np.rint(weights * (_NARROW_LEVELS / _LEVELS)).astype(np.int8)
        wider = (scales * (_LEVELS / _NARROW_LEVELS)).astype(scales.dtype)
        for name, values in zip(names, (rounded, wider), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        node.input[:2] = names


def _quantized_convolutions(view: GraphView) -> int:
    return len(_integer_weights(view))


def _integer_weights(view: GraphView) -> list[NodeProto]:
    """Return what makes the weights of convolutions of integers, in a graph in INT8."""
    weights = [view.producer(node.input[1]) for node in view.nodes if node.op_type == "Conv"]
    return [one for one in weights if one is not None and one.op_type == "DequantizeLinear"]


def _reason(error: Exception) -> str:
    """Return what the library's message says; other lines are places in its source, or advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    return (said or lines or [type(error).__name__])[-1]
