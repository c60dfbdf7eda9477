"""Reading ONNX graphs: parse bytes, find the image input, see who makes and who reads a tensor.

Libraries answer broken bytes with a riddle (OpenVINO says that they are no Paddle model), so graphs
are read here first, and what is wrong with them is said once, in one way.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import onnx as onnx_package
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from nas.errors import ExportError

__all__ = [
    "GraphView",
    "attribute",
    "blamed_nodes",
    "check_graph",
    "half_weights",
    "image_shape",
    "image_size",
    "onnx_digest",
    "parse_onnx",
    "quantized_operators",
    "shape_of",
]

_QUANTIZED_OPERATORS = frozenset(
    {"ConvInteger", "DequantizeLinear", "QLinearConv", "QuantizeLinear"}
)
_HALF_TYPES = frozenset({onnx_package.TensorProto.FLOAT16, onnx_package.TensorProto.BFLOAT16})
_MOST_BLAMED = 3
_IMAGE_RANK, _CHANNELS = 4, 3


def onnx_digest(onnx: bytes) -> str:
    """16 hexadecimal characters of the SHA-256 of a graph."""
    return hashlib.sha256(onnx).hexdigest()[:16]


def parse_onnx(onnx: bytes) -> onnx_package.ModelProto:
    """Parse the bytes of a model.

    Raises:
        ExportError: they are not a model.
    """
    try:
        model = onnx_package.load_from_string(onnx)
    except DecodeError as error:
        raise ExportError(
            f"These {len(onnx)} bytes are not an ONNX model.", "Export it again."
        ) from error
    if not model.graph.node:
        raise ExportError(
            f"An ONNX model needs a graph, these {len(onnx)} bytes have none.", "Export it again."
        )
    return model


def check_graph(onnx: bytes) -> None:
    """Check that every node is one that ONNX knows, with the inputs and attributes that it takes.

    Operators of other domains than ONNX's own are not looked at. Libraries need not survive a
    broken node: OpenVINO 2026.4 crashes at a convolution without weights.

    Raises:
        ExportError: it is not; names the node and its operator.
    """
    try:
        onnx_package.checker.check_model(onnx)
    except onnx_package.checker.ValidationError as error:
        raise ExportError(
            f"The graph is not valid ONNX: {' '.join(str(error).split())}",
            "Export the network again, or leave out the block that has this operator.",
        ) from error


def blamed_nodes(onnx: bytes, text: str) -> str:
    """Name the nodes whose operators a library's message speaks of; empty if it does of none."""
    nodes = parse_onnx(onnx).graph.node
    kinds = {node.op_type for node in nodes}
    spoken = {
        one for one in kinds if re.search(rf"(?<![A-Za-z]){re.escape(one)}(?![A-Za-z])", text)
    }
    found = [f"{node.name!r} ({node.op_type})" for node in nodes if node.op_type in spoken]
    more = f" and {len(found) - _MOST_BLAMED} more" if len(found) > _MOST_BLAMED else ""
    return ", ".join(found[:_MOST_BLAMED]) + more


def image_shape(model: onnx_package.ModelProto) -> tuple[int, int, int, int]:
    """Return the shape of the one image input, static float32 (N, 3, H, W).

    Raises:
        ExportError: there is another number of inputs, or the input has another type or shape.
    """
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        raise ExportError(f"A detector has one input, this graph has {len(inputs)}: {names}.")
    shape, kind = shape_of(inputs[0]), inputs[0].type.tensor_type.elem_type
    if kind != onnx_package.TensorProto.FLOAT:
        raise ExportError(
            f"The input {inputs[0].name!r} must be FLOAT, it is "
            f"{onnx_package.TensorProto.DataType.Name(kind)}.",
            "Export the network in fp32: the precision is chosen when an engine is built.",
        )
    if len(shape) != _IMAGE_RANK or shape[1] != _CHANNELS or 0 in shape:
        raise ExportError(
            f"The input {inputs[0].name!r} must have a static shape (batch, 3, height, width), "
            f"it has {_named_shape(inputs[0])}.",
            "Export it with fixed shapes: engines choose their kernels by them.",
        )
    return shape[0], shape[1], shape[2], shape[3]


def image_size(model: onnx_package.ModelProto) -> tuple[int, int]:
    """Return (H, W) of the one image input.

    Raises:
        ExportError: as `image_shape`.
    """
    return image_shape(model)[2:]


def _named_shape(value: onnx_package.ValueInfoProto) -> str:
    """Write a shape with the names of its dynamic sides, and say that these are dynamic."""
    sides = value.type.tensor_type.shape.dim
    names = [str(side.dim_value or side.dim_param or "?") for side in sides]
    dynamic = [
        f"dimension {index} ({name!r})"
        for index, (side, name) in enumerate(zip(sides, names, strict=True))
        if not side.dim_value
    ]
    verb = "is" if len(dynamic) == 1 else "are"
    said = f", where {' and '.join(dynamic)} {verb} dynamic" if dynamic else ""
    return f"({', '.join(names)}){said}"


def quantized_operators(model: onnx_package.ModelProto) -> tuple[str, ...]:
    """Return the names of the operators that make a graph an INT8 graph; empty if it has none."""
    return tuple(sorted({node.op_type for node in model.graph.node} & _QUANTIZED_OPERATORS))


def half_weights(model: onnx_package.ModelProto) -> bool:
    """Say whether any weight is in half precision."""
    return any(weight.data_type in _HALF_TYPES for weight in model.graph.initializer)


def shape_of(value: onnx_package.ValueInfoProto) -> tuple[int, ...]:
    """Return the shape of an input or output; 0 stands for a dynamic side."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def attribute(node: onnx_package.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute of a node, or what ONNX takes if it is absent."""
    for one in node.attribute:
        if one.name == name:
            return onnx_package.helper.get_attribute_value(one)
    return default


class GraphView:
    """Who makes and who reads each tensor of a graph. It does not follow later changes.

    Attributes:
        nodes: of the graph, in order.
        outputs: names of its outputs.
        constants: tensor -> value; initializers, `Constant` nodes and copies of them.
    """

    def __init__(self, model: onnx_package.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.outputs = frozenset(one.name for one in model.graph.output)
        self.constants = {one.name: one for one in model.graph.initializer}
        self._producers: dict[str, onnx_package.NodeProto] = {}
        self._readers: dict[str, list[onnx_package.NodeProto]] = {}
        for node in self.nodes:
            self._add(node)

    def producer(self, tensor: str) -> onnx_package.NodeProto | None:
        """Return the node that makes a tensor; None for inputs and initializers."""
        return self._producers.get(tensor)

    def readers(self, tensor: str) -> list[onnx_package.NodeProto]:
        """Return the nodes that read a tensor, in order, once for each input that does."""
        return self._readers.get(tensor, [])

    def _add(self, node: onnx_package.NodeProto) -> None:
        self._producers |= dict.fromkeys(node.output, node)
        for tensor in filter(None, node.input):
            self._readers.setdefault(tensor, []).append(node)
        # The exporter writes equal weights once, and copies them under their other names.
        if node.op_type == "Identity" and node.input[0] in self.constants:
            self.constants[node.output[0]] = self.constants[node.input[0]]
        elif node.op_type == "Constant" and isinstance(
            value := attribute(node, "value", None), onnx_package.TensorProto
        ):
            self.constants[node.output[0]] = value
