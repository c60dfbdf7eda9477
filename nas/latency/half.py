"""fp32 or INT8 graph -> the same graph in half precision, with islands that stay in fp32.

A strongly typed TensorRT network computes each operator in the type of its tensors, so what half
precision cannot hold has to be said in the graph. Half precision has 11 bits of mantissa and ends
at 65504 (IEEE 754 binary16). In fp32 stay

* softmax, layer normalisation, reductions and the choice of the largest values, together with the
  elementwise operators that only prepare their input: the squares of token scores above all;
* everything from the last convolutions to the outputs: a coordinate of 2000 pixels would be rounded
  to whole pixels.

Convolutions and products of matrices never stay. Operators that only move values stay with the
side that they take their input from, so that few and small tensors are cast.
"""

from __future__ import annotations

from collections.abc import MutableSequence

import numpy as np
import onnx as onnx_package
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nas.errors import ExportError
from nas.latency.onnx_graph import GraphView, half_weights, parse_onnx

__all__ = ["to_half"]

_FULL, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)

_PRECISE = frozenset({"LayerNormalization", "LogSoftmax", "Softmax", "TopK"})
_HEAVY = frozenset({"Conv", "ConvTranspose", "DequantizeLinear", "Gemm", "QuantizeLinear"})
_MOVING = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape"),
        *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
# ONNX fixes the type of these inputs, whatever the type of the data.
_ALWAYS_FULL = {"Resize": (1, 2)}


def to_half(onnx: bytes, *, half_ends: bool = False) -> bytes:
    """Convert a graph to half precision.

    Args:
        onnx: a graph in fp32, or one that `nas.latency.quantization.quantize` wrote, whose scales
            become half precision (opset 19).
        half_ends: inputs and outputs in half precision, too; else they stay in float32.

    Returns:
        The graph, type-checked.

    Raises:
        ExportError: it is in half precision already, holds a weight that half precision cannot, or
            has an operator without a half-precision form.
    """
    model = parse_onnx(onnx)
    if half_weights(model):
        raise ExportError("Only a graph in fp32 can be converted, this one has half weights.")
    _Conversion(model, half_ends=half_ends).run()
    try:
        onnx_package.checker.check_model(model, full_check=True)
    except (onnx_package.checker.ValidationError, onnx_package.shape_inference.InferenceError) as e:
        raise ExportError(
            f"This graph has no form in half precision: {str(e).strip().splitlines()[0]}",
            "Leave out the block that has this operator, or build the engine in fp32.",
        ) from e
    return bytes(model.SerializeToString())


class _Conversion:
    """Rewrites a model in place."""

    def __init__(self, model: onnx_package.ModelProto, *, half_ends: bool) -> None:
        self._model = model
        self._ends = _HALF if half_ends else _FULL
        tensors = _float_tensors(model)
        _drop_idle_casts(model, tensors)
        self._view = GraphView(model)
        self._islands = _islands(self._view)
        known = self._view.constants.items()
        self._full = tensors | {name for name, one in known if one.data_type == _FULL}
        # Type that each float tensor really has, once its producer is written.
        self._types: dict[str, int] = {}
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, TensorProto] = {}
        self._casts: set[str] = set()

    def run(self) -> None:
        for value in self._model.graph.input:
            if value.name in self._full and value.name not in self._view.constants:
                value.type.tensor_type.elem_type = self._types[value.name] = self._ends
        for node in self._view.nodes:
            if not set(node.output) & self._view.constants.keys():
                self._convert(node)
        self._convert_outputs()
        self._replace()

    def _convert(self, node: NodeProto) -> None:
        kind = _FULL if id(node) in self._islands else _HALF
        for index, name in enumerate(node.input):
            if name in self._full:
                fixed = index in _ALWAYS_FULL.get(node.op_type, ())
                node.input[index] = self._as(name, _FULL if fixed else kind, node.op_type)
        if node.op_type == "Cast" and node.output[0] in self._full:
            node.attribute[0].i = kind
        if node.op_type == "ConstantOfShape" and node.output[0] in self._full:
            _fill_with(node, kind)
        self._types |= dict.fromkeys(self._full.intersection(node.output), kind)
        self._nodes.append(node)

    def _as(self, name: str, kind: int, reader: str) -> str:
        """Return the name of a tensor in a type, and provide it."""
        if name in self._view.constants:
            return self._constant(name, kind, reader)
        if self._types[name] == kind:
            return name
        cast = f"{name}_{'full' if kind == _FULL else 'half'}"
        if cast not in self._casts:
            self._casts.add(cast)
            self._nodes.append(helper.make_node("Cast", [name], [cast], cast, to=kind))
        return cast

    def _constant(self, name: str, kind: int, reader: str) -> str:
        values = numpy_helper.to_array(self._view.constants[name])
        typed = f"{name}_{'full' if kind == _FULL else 'half'}"
        if kind == _HALF:
            finite = values[np.isfinite(values)]
            if np.abs(finite).max(initial=0.0) > _LARGEST:
                raise ExportError(
                    f"A weight in half precision must be at most {_LARGEST:g}, {name!r} holds "
                    f"{finite[np.abs(finite).argmax()]:g}.",
                    "Train the network with weight decay, or build the engine in fp32.",
                )
            values = values.astype(np.float16)
            if reader in ("QuantizeLinear", "DequantizeLinear"):
                values = np.maximum(values, np.float16(_SMALLEST))
        self._weights[typed] = numpy_helper.from_array(values, typed)
        return typed

    def _convert_outputs(self) -> None:
        """Cast the outputs of which the last operator has another type; their names stay."""
        for value in self._model.graph.output:
            if value.name not in self._full:
                continue
            value.type.tensor_type.elem_type = self._ends
            if self._types[value.name] != self._ends:
                inner = f"{value.name}_inner"
                for node in self._nodes:
                    _rename(node.input, value.name, inner)
                    _rename(node.output, value.name, inner)
                self._nodes.append(
                    helper.make_node("Cast", [inner], [value.name], f"{inner}_cast", to=self._ends)
                )

    def _replace(self) -> None:
        graph = self._model.graph
        used = {name for node in self._nodes for name in node.input}
        known = self._view.constants.items()
        constants = [_named(one, name) for name, one in known if name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend([*constants, *self._weights.values()])


def _islands(view: GraphView) -> set[int]:
    """Return the ids of the nodes that stay in fp32."""
    islands: set[int] = set()
    for node in reversed(view.nodes):
        precise = node.op_type in _PRECISE or node.op_type.startswith("Reduce")
        if precise or (not _is_heavy(view, node) and _is_read_inside(view, node, islands)):
            islands.add(id(node))
    for node in view.nodes:  # those that only move what comes from outside leave again
        producers = [view.producer(name) for name in node.input if name not in view.constants]
        inside = any(one is not None and id(one) in islands for one in producers)
        if node.op_type in _MOVING and not inside:
            islands.discard(id(node))
    return islands


def _is_read_inside(view: GraphView, node: NodeProto, islands: set[int]) -> bool:
    """Say whether whatever a node computes is read by islands or is an output of the graph."""
    read = all(id(one) in islands for name in node.output for one in view.readers(name))
    ends = any(view.readers(name) or name in view.outputs for name in node.output)
    return read and ends


def _is_heavy(view: GraphView, node: NodeProto) -> bool:
    """Say whether an operator is worth half precision; a weighted sum over few values is not."""
    if node.op_type != "MatMul":
        return node.op_type in _HEAVY
    shapes = [view.constants[one].dims for one in node.input if one in view.constants]
    return not any(np.prod(shape) == max(shape, default=1) for shape in shapes)


def _float_tensors(model: onnx_package.ModelProto) -> set[str]:
    graph = onnx_package.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {one.name for one in values if one.type.tensor_type.elem_type == _FULL}


def _drop_idle_casts(model: onnx_package.ModelProto, full: set[str]) -> None:
    """Drop the casts from fp32 to fp32: what the exporter makes of a network asking for fp32."""
    sources: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = sources.get(name, name)
        idle = node.op_type == "Cast" and full.issuperset((*node.input, *node.output))
        if idle and not any(node.output[0] == one.name for one in model.graph.output):
            sources[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _fill_with(node: NodeProto, kind: int) -> None:
    """Give the value of a ConstantOfShape, 0 if it is absent, another type."""
    values = [numpy_helper.to_array(one.t) for one in node.attribute]
    value = (values[0] if values else np.zeros(1)).astype(helper.tensor_dtype_to_np_dtype(kind))
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value)))


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


def _named(tensor: TensorProto, name: str) -> TensorProto:
    twin = TensorProto()
    twin.CopyFrom(tensor)
    twin.name = name
    return twin
