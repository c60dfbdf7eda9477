"""What a network makes a device do: its operator graph as numbers, in the layers that engines run.

Total multiplications rank detectors poorly on fast devices, where a small layer costs its launch
and a concatenation costs its bytes. So an ONNX graph is read operator by operator, and operators
are joined as TensorRT joins them: pointwise operators run inside the layer that feeds them, changes
of shape cost nothing, and a concatenation of channels costs nothing where layers can write straight
into it (NVIDIA, TensorRT Developer Guide, "Layer Fusion").

Sizes are counted in elements, not bytes: the precision that an engine runs in is not the graph's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx as onnx_package
from onnx import NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from nas.errors import ExportError
from nas.latency.onnx_graph import GraphView, attribute, image_size, parse_onnx, shape_of

__all__ = ["Kind", "Layer", "Workload"]

Kind = Literal[
    "convolution", "product", "pointwise", "pooling", "reduction", "selection", "movement"
]
Shape = tuple[int, ...]

_FREE = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
_OPERATORS: dict[Kind, str] = {
    "convolution": "Conv ConvTranspose",
    "product": "Gemm MatMul",
    "pooling": "AveragePool GlobalAveragePool GlobalMaxPool MaxPool",
    "reduction": """
        CumSum LayerNormalization LogSoftmax LpNormalization ReduceL2 ReduceMax ReduceMean ReduceMin
        ReduceProd ReduceSum ReduceSumSquare Softmax
    """,
    "selection": """
        ArgMax ArgMin Gather GatherElements GatherND GridSample NonZero ScatterElements ScatterND
        TopK
    """,
    "movement": """
        Concat DepthToSpace Expand Pad Resize Slice SpaceToDepth Split Tile Transpose
    """,
    "pointwise": """
        Abs Add And Cast Ceil Clip Cos DequantizeLinear Div Elu Equal Erf Exp Floor Gelu Greater
        GreaterOrEqual HardSigmoid HardSwish LeakyRelu Less LessOrEqual Log Max Min Mish Mod Mul Neg
        Not Or PRelu Pow QuantizeLinear Reciprocal Relu Round Sigmoid Sign Sin Softplus Sqrt Sub Sum
        Tanh Where
    """,
}
_KINDS = {name: kind for kind, names in _OPERATORS.items() for name in names.split()}
_HOSTS = frozenset({"convolution", "product", "pointwise"})
_STAYING = frozenset({"Constant", "DequantizeLinear", "Identity", "Shape"})
_VECTOR = 8  # channels of a vector of half-precision values, which tensor cores take at once
_KEPT_ELEMENTS = 4096  # larger weights have no part in shapes


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One launch of an engine: an operator, and the pointwise operators that run inside it.

    Attributes:
        name: of its first node.
        kind: what bounds it.
        operators: the ONNX operators, in order.
        macs: multiplications with accumulation, for one image; of convolutions and products.
        weights: elements of its constant inputs.
        reads: elements of the tensors that come from other layers.
        writes: elements of the tensors that other layers read.
        shape: of its first output.
        kernel: height and width; (1, 1) where there is none.
        stride: of a convolution or a pooling, the larger side; 1 where there is none.
        groups: of a convolution; the number of products of a batched product.
        in_channels: of one group: values that one output sums over, without the kernel.
        out_channels: of one group.
    """

    name: str
    kind: Kind
    operators: tuple[str, ...]
    macs: int = 0
    weights: int = 0
    reads: int = 0
    writes: int = 0
    shape: Shape = ()
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    in_channels: int = 0
    out_channels: int = 0

    @property
    def aligned(self) -> bool:
        """Whether the channels of a group fill whole vectors, before and after; else it pads."""
        return not (self.in_channels % _VECTOR or self.out_channels % _VECTOR)

    @property
    def padded_macs(self) -> int:
        """Multiplications when the channels of each group are padded to whole vectors."""
        if self.macs == 0 or self.aligned:
            return self.macs
        padded = _padded(self.in_channels) * _padded(self.out_channels)
        return round(self.macs * padded / (self.in_channels * self.out_channels))

    @property
    def positions(self) -> int:
        """Rows of the matrix product that a convolution or product is: outputs of one channel."""
        wide = self.groups * self.out_channels
        return max(1, math.prod(self.shape) // wide) if wide else 0


@dataclass(frozen=True)
class Workload:
    """All layers of a network for one image, in an order in which they can run.

    Attributes:
        layers: what an engine launches.
        input: height and width of the image, pixels.
    """

    layers: tuple[Layer, ...]
    input: tuple[int, int]

    @classmethod
    def from_onnx(cls, onnx: bytes) -> Workload:
        """Read a graph of static shapes; weights may be of any precision, or quantized.

        Raises:
            ExportError: the bytes are not a model, it has another input than one static image, a
                shape depends on the image, or an operator is unknown.
        """
        model = parse_onnx(onnx)
        size = image_size(model)
        reader = _Reader(GraphView(model), _shapes(model))
        return cls(reader.layers(), size)

    @property
    def macs(self) -> int:
        """Multiplications with accumulation of the whole network."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Elements of all constants that layers read."""
        return sum(layer.weights for layer in self.layers)

    @property
    def traffic(self) -> int:
        """Elements that all layers read and write, weights included."""
        return sum(layer.reads + layer.writes + layer.weights for layer in self.layers)

    @property
    def launches(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def aligned_share(self) -> float:
        """Share of the multiplications that need no padding of channels, 0..1; 1 without any."""
        aligned = sum(layer.macs for layer in self.layers if layer.aligned)
        return aligned / self.macs if self.macs else 1.0


@dataclass
class _Group:
    """A layer while it grows."""

    nodes: list[NodeProto]
    kind: Kind
    elements: int
    made: set[str] = field(default_factory=set)


class _Reader:
    """Joins the nodes of a graph into layers."""

    def __init__(self, view: GraphView, shapes: Mapping[str, Shape]) -> None:
        self._view, self._shapes = view, shapes
        self._groups: list[_Group] = []
        self._parts: dict[str, list[str]] = {}  # of a tensor: those that it is another view of
        self._concatenated: set[str] = set()
        self._group_of: dict[str, int] = {}
        self._fixed: set[str] = set(view.constants)  # known before an image is

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers of all nodes that depend on the image."""
        for node in self._view.nodes:
            self._place(node)
        live = self._live()
        return tuple(self._layer(group, live) for group in self._groups)

    def _place(self, node: NodeProto) -> None:
        inputs = [name for name in node.input if name]
        if node.op_type == "Shape" or all(name in self._fixed for name in inputs):
            self._fixed.update(node.output)
        elif node.op_type in _FREE:
            first = next(name for name in inputs if name not in self._fixed)
            self._parts[node.output[0]] = self._sources([first])
        elif self._written_in_place(node):
            self._parts[node.output[0]] = self._sources(inputs)
            self._concatenated.update(self._parts[node.output[0]])
        else:
            self._join(node, _kind(node))

    def _join(self, node: NodeProto, kind: Kind) -> None:
        elements = math.prod(self._shape(node.output[0]))
        index = len(self._groups)
        if kind == "pointwise":
            index = self._host(node, elements)
        if index == len(self._groups):
            self._groups.append(_Group([], kind, elements))
        group = self._groups[index]
        group.nodes.append(node)
        group.made.update(node.output)
        self._group_of |= dict.fromkeys(node.output, index)

    def _host(self, node: NodeProto, elements: int) -> int:
        """Return the layer that a pointwise operator runs in: the last that feeds it, or a new one.

        Layers only ever read from earlier ones that way, so no two wait for each other.
        """
        sources = self._sources(self._varying(node))
        last = max((self._group_of.get(source, -1) for source in sources), default=-1)
        if last < 0 or self._groups[last].kind not in _HOSTS:
            return len(self._groups)
        return last if self._groups[last].elements == elements else len(self._groups)

    def _written_in_place(self, node: NodeProto) -> bool:
        """Whether a concatenation is only where layers write; a tensor lies in one place only."""
        if node.op_type != "Concat":
            return False
        sources = self._sources(node.input)
        written = all(source in self._group_of for source in sources)
        return (
            written and len(set(sources)) == len(sources) and self._concatenated.isdisjoint(sources)
        )

    def _layer(self, group: _Group, live: set[str]) -> Layer:
        head = group.nodes[0]
        varying = {name for node in group.nodes for name in self._varying(node)}
        read = {name for name in varying if not group.made.issuperset(self._sources([name]))}
        layer = Layer(
            name=head.name or head.output[0],
            kind=group.kind,
            operators=tuple(node.op_type for node in group.nodes),
            weights=sum(self._elements(name) for name in self._weights(group)),
            reads=sum(self._elements(name) for name in read),
            writes=sum(self._elements(name) for name in group.made & live),
            shape=self._shape(head.output[0]),
        )
        if group.kind == "convolution":
            return self._as_convolution(layer, head)
        if group.kind == "product":
            return self._as_product(layer, head)
        if group.kind == "pooling":
            return replace(layer, kernel=_pair(head, "kernel_shape"), stride=_stride(head))
        return layer

    def _as_convolution(self, layer: Layer, node: NodeProto) -> Layer:
        weight, groups = self._shape(node.input[1]), int(attribute(node, "group", 1))
        transposed = node.op_type == "ConvTranspose"
        # Weights are (out, in / groups, h, w), those of a transposed one (in, out / groups, h, w).
        inputs, outputs = weight[1], weight[0] // groups
        if transposed:
            inputs, outputs = outputs, inputs
        turns = math.prod(self._shape(node.input[0])) if transposed else math.prod(layer.shape)
        return replace(
            layer,
            macs=turns * math.prod(weight[2:]) * (outputs if transposed else inputs),
            kernel=(weight[2], weight[3]),
            stride=_stride(node),
            groups=groups,
            in_channels=inputs,
            out_channels=outputs,
        )

    def _as_product(self, layer: Layer, node: NodeProto) -> Layer:
        left, right = self._shape(node.input[0]), self._shape(node.input[1])
        summed = left[-2] if attribute(node, "transA", 0) else left[-1]
        columns = right[-2] if attribute(node, "transB", 0) else right[-1]
        return replace(
            layer,
            macs=math.prod(layer.shape) * summed,
            groups=max(math.prod(left[:-2]), math.prod(right[:-2])),
            in_channels=summed,
            out_channels=columns,
        )

    def _live(self) -> set[str]:
        """Return the tensors that another layer reads, or the outside."""
        live = set(self._sources(self._view.outputs))
        for node in self._view.nodes:
            mine = self._group_of.get(node.output[0])
            sources = self._sources(self._varying(node))
            live.update(one for one in sources if mine is None or self._group_of.get(one) != mine)
        return live

    def _varying(self, node: NodeProto) -> list[str]:
        return [name for name in node.input if name and name not in self._fixed]

    def _sources(self, names: Iterable[str]) -> list[str]:
        return [source for name in names for source in self._parts.get(name, [name])]

    def _weights(self, group: _Group) -> set[str]:
        """Return the constants that a layer reads; the parameters of a movement are no weights."""
        if group.kind in {"movement", "pooling"}:
            return set()
        names = {name for node in group.nodes for name in node.input if name in self._fixed}
        return {self._stored(name) for name in names}

    def _stored(self, name: str) -> str:
        """Return what a fixed tensor is stored as: quantized weights are read as such."""
        producer = self._view.producer(name)
        folded = producer is not None and producer.op_type == "DequantizeLinear"
        return producer.input[0] if producer is not None and folded else name

    def _elements(self, name: str) -> int:
        return math.prod(self._shape(name))

    def _shape(self, name: str) -> Shape:
        constant = self._view.constants.get(name)
        shape = tuple(constant.dims) if constant is not None else self._shapes.get(name)
        if shape is None or 0 in shape:
            raise ExportError(
                f"The tensor {name!r} must have a static shape, it has {shape or 'none'}.",
                "Export it with fixed shapes and batch 1.",
            )
        return shape


def _kind(node: NodeProto) -> Kind:
    if node.op_type not in _KINDS or node.domain not in ("", "ai.onnx"):
        raise ExportError(
            f"What the operator {node.op_type} of node {node.name!r} costs is not known.",
            "Measure this network, or write the operator with others.",
        )
    return _KINDS[node.op_type]


def _shapes(model: onnx_package.ModelProto) -> dict[str, Shape]:
    """Infer the shapes of all tensors, on a copy without large weights: those cost most of it."""
    light = _without_weights(model)
    shapes: dict[str, Shape] = {}
    while _fold(light, shapes) or not shapes:
        graph = onnx_package.shape_inference.infer_shapes(light, data_prop=True).graph
        shapes = _known([*graph.input, *graph.value_info, *graph.output])
    return shapes | {weight.name: tuple(weight.dims) for weight in light.graph.initializer}


def _without_weights(model: onnx_package.ModelProto) -> onnx_package.ModelProto:
    light = onnx_package.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    named = {value.name for value in model.graph.input}
    for weight in model.graph.initializer:
        if math.prod(weight.dims) <= _KEPT_ELEMENTS:
            light.graph.initializer.append(weight)
        elif weight.name not in named:
            light.graph.input.append(
                onnx_package.helper.make_tensor_value_info(
                    weight.name, weight.data_type, list(weight.dims)
                )
            )
    return light


def _fold(model: onnx_package.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Compute what follows from constants and known shapes, which inference gives up on.

    Exporters write the shapes for `Expand` and `Slice` down as operators. Returns whether any was.
    """
    view, graph = GraphView(model), model.graph
    values = {name: numpy_helper.to_array(value) for name, value in view.constants.items()}
    before = len(graph.node)
    for node in view.nodes:
        if node.op_type == "Shape" and 0 not in shapes.get(node.input[0], (0,)):
            value = np.array(shapes[node.input[0]], dtype=np.int64)
        elif _follows(node, values):
            feeds = {name: values[name] for name in node.input}
            (computed,) = ReferenceEvaluator(node).run(None, feeds)
            value = np.asarray(computed)
        else:
            continue
        values[node.output[0]] = value
        graph.node.remove(node)
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    return len(graph.node) < before


def _follows(node: NodeProto, values: Mapping[str, object]) -> bool:
    plain = node.op_type not in _STAYING and len(node.output) == 1 and node.domain == ""
    return plain and all(name in values for name in node.input)


def _known(values: Iterable[onnx_package.ValueInfoProto]) -> dict[str, Shape]:
    return {one.name: shape_of(one) for one in values if one.type.tensor_type.HasField("shape")}


def _padded(channels: int) -> int:
    return -(-channels // _VECTOR) * _VECTOR


def _pair(node: NodeProto, name: str) -> tuple[int, int]:
    sides = attribute(node, name, [1, 1])
    return int(sides[0]), int(sides[-1])


def _stride(node: NodeProto) -> int:
    return max(_pair(node, "strides"))
