"""Every operator that is converted, in the forms that exporters write, beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nas.errors import EngineError
from nas.latency.half import to_half
from nas.latency.onnx_export import export_onnx
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.torch_graph import TorchGraph
from nas.latency.runtimes.torch_operators import OPERATORS
from nas.model.detector import Detector
from nas.space.space import load_space

SHAPE = (2, 3, 6, 8)
RNG = np.random.default_rng(0)
Constants = Mapping[str, Any]


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Constants | None = None,
    outputs: Mapping[str, int] | None = None,
    opset: int = 19,
) -> bytes:
    """A graph from `images` to outputs of unknown shape, whose types are given."""
    kinds = outputs or {"out": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, SHAPE)]
    values = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    known = [numpy_helper.from_array(np.array(v), name) for name, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, values, known)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())


def agree(graph: bytes, images: Any = None) -> TorchGraph:
    """Compare torch with ONNX Runtime; return the converted graph."""
    images = RNG.normal(size=SHAPE).astype(np.float32) if images is None else images
    expected = OnnxRuntime().evaluate(graph, images)
    converted = TorchGraph(graph)
    found = converted.module(torch.from_numpy(images))
    assert converted.outputs == list(expected)
    for values, (name, wanted) in zip(found, expected.items(), strict=True):
        assert values.shape == wanted.shape, name
        assert str(values.dtype).removeprefix("torch.") == str(wanted.dtype)
        np.testing.assert_allclose(values.numpy(), wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    return converted


def node(operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, [*inputs], ["out"], f"/neck/{operator}", **attributes)


FILTERS = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
GROUPED = RNG.normal(size=(6, 1, 3, 3)).astype(np.float32)
TRANSPOSED = RNG.normal(size=(3, 5, 2, 2)).astype(np.float32)
ROW = RNG.normal(size=8).astype(np.float32)

FORMS: list[tuple[onnx.NodeProto, Constants]] = [
    *((node(one, "images"), {}) for one in ("Abs", "Erf", "Exp", "Floor", "Neg", "Relu")),
    *((node(one, "images"), {}) for one in ("Sigmoid", "Softplus", "Tanh", "Identity")),
    *((node(one, "images", "row"), {"row": ROW}) for one in ("Add", "Sub", "Mul", "Div")),
    *((node(one, "images", "row", "images"), {"row": ROW}) for one in ("Max", "Min")),
    (node("Pow", "images", "two"), {"two": np.float32(2)}),
    (node("Clip", "images", "low", "high"), {"low": np.float32(-0.5), "high": np.float32(0.7)}),
    (node("Clip", "images", "", "high"), {"high": np.float32(0.7)}),
    (node("MatMul", "images", "w"), {"w": RNG.normal(size=(8, 5)).astype(np.float32)}),
    (node("Conv", "images", "w"), {"w": FILTERS}),
    (
        node("Conv", "images", "w", "b", strides=[2, 1], pads=[1, 2, 1, 2]),
        {"w": FILTERS, "b": ROW[:4]},
    ),
    (node("Conv", "images", "w", dilations=[2, 2], pads=[0, 1, 3, 2]), {"w": FILTERS}),
    (node("Conv", "images", "w", group=3), {"w": GROUPED}),
    (node("ConvTranspose", "images", "w", "b", strides=[2, 2]), {"w": TRANSPOSED, "b": ROW[:5]}),
    (
        node(
            "ConvTranspose", "images", "w", strides=[2, 2], pads=[1, 0, 1, 0], output_padding=[1, 1]
        ),
        {"w": TRANSPOSED},
    ),
    (node("MaxPool", "images", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]), {}),
    (node("MaxPool", "images", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]), {}),
    (node("MaxPool", "images", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}),
    (
        node(
            "Resize",
            "images",
            "",
            "s",
            coordinate_transformation_mode="asymmetric",
            mode="nearest",
            nearest_mode="floor",
        ),
        {"s": np.array([1, 1, 2, 3], np.float32)},
    ),
    (
        node(
            "Resize",
            "images",
            "",
            "",
            "n",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        {"n": np.array([2, 3, 12, 16])},
    ),
    (node("Resize", "images", "", "s"), {"s": np.array([1, 1, 4, 3], np.float32)}),
    (node("LayerNormalization", "images", "g", "b"), {"g": ROW, "b": ROW[::-1].copy()}),
    (
        node("LayerNormalization", "images", "g", axis=2, epsilon=1e-3),
        {"g": np.ones((6, 8), np.float32)},
    ),
    (node("Softmax", "images"), {}),
    (node("Softmax", "images", axis=1), {}),
    (node("ReduceSum", "images", "a"), {"a": np.array([1, -1])}),
    (node("ReduceSum", "images", "a", keepdims=0), {"a": np.array([2])}),
    (node("ReduceSum", "images", keepdims=0), {}),
    (node("ReduceSum", "images", noop_with_empty_axes=1), {}),
    (node("Gather", "images", "i", axis=2), {"i": np.array([[0, -1], [3, 2]])}),
    (node("Gather", "images", "i", axis=-1), {"i": np.array(-3)}),
    (node("GatherElements", "images", "i", axis=3), {"i": np.full((2, 3, 6, 2), -2)}),
    (
        node("ScatterElements", "images", "i", "u", axis=1),
        {"i": np.full((2, 1, 6, 8), -1), "u": np.ones((2, 1, 6, 8), np.float32)},
    ),
    (node("Reshape", "images", "s"), {"s": np.array([0, -1, 4])}),
    (node("Flatten", "images"), {}),
    (node("Flatten", "images", axis=0), {}),
    (node("Expand", "images", "s"), {"s": np.array([5, 1, 3, 1, 1])}),
    (
        node("Slice", "images", "s", "e", "a"),
        {"s": np.array([1, -3]), "e": np.array([2**63 - 1, -1]), "a": np.array([1, 3])},
    ),
    (node("Slice", "images", "s", "e"), {"s": np.array([0, 1]), "e": np.array([1, 9])}),
    (
        node("Slice", "images", "s", "e", "a", "t"),
        {"s": np.array([1]), "e": np.array([8]), "a": np.array([-1]), "t": np.array([3])},
    ),
    (node("Squeeze", "images"), {}),
    (node("Unsqueeze", "images", "a"), {"a": np.array([0, -1])}),
    (node("Transpose", "images"), {}),
    (node("Transpose", "images", perm=[0, 2, 3, 1]), {}),
    (node("Concat", "images", "images", axis=1), {}),
    (node("Concat", "images", "images", axis=-1), {}),
]


@pytest.mark.parametrize(("one", "constants"), FORMS, ids=lambda part: getattr(part, "op_type", ""))
def test_operator__computes_what_onnx_runtime_computes(
    one: onnx.NodeProto, constants: Constants
) -> None:
    agree(graph_of([one], constants))


CHAINS: dict[str, tuple[list[onnx.NodeProto], Constants, dict[str, int]]] = {
    "TopK": (
        [helper.make_node("TopK", ["images", "k"], ["values", "indices"], axis=-1)],
        {"k": np.array([3])},
        {"values": TensorProto.FLOAT, "indices": TensorProto.INT64},
    ),
    "TopK smallest": (
        [helper.make_node("TopK", ["images", "k"], ["values", "indices"], axis=1, largest=0)],
        {"k": np.array([2])},
        {"values": TensorProto.FLOAT, "indices": TensorProto.INT64},
    ),
    "ArgMax": ([node("ArgMax", "images", axis=2, keepdims=0)], {}, {"out": TensorProto.INT64}),
    "Equal": (
        [
            helper.make_node("Floor", ["images"], ["whole"]),
            helper.make_node("Equal", ["whole", "zero"], ["same"]),
            helper.make_node("Where", ["same", "images", "zero"], ["out"]),
        ],
        {"zero": np.float32(0)},
        {"out": TensorProto.FLOAT},
    ),
    "Cast": (
        [
            helper.make_node("Cast", ["images"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Div", ["whole", "two"], ["half"]),
            helper.make_node("Cast", ["half"], ["out"], to=TensorProto.INT32),
        ],
        {"two": np.array(2)},
        {"out": TensorProto.INT32},
    ),
    "Sqrt": (
        [helper.make_node("Mul", ["images", "images"], ["s"]), node("Sqrt", "s")],
        {},
        {"out": TensorProto.FLOAT},
    ),
    "Split": (
        [helper.make_node("Split", ["images", "s"], ["a", "b"], axis=3)],
        {"s": np.array([3, 5])},
        {"a": TensorProto.FLOAT, "b": TensorProto.FLOAT},
    ),
    "Split, uneven": (
        [helper.make_node("Split", ["images"], ["a", "b", "c"], axis=3, num_outputs=3)],
        {},
        dict.fromkeys("abc", TensorProto.FLOAT),
    ),
    "Shape": (
        [
            helper.make_node("Shape", ["images"], ["sides"], start=1),
            helper.make_node("ConstantOfShape", ["sides"], ["zeros"]),
            helper.make_node("Add", ["images", "zeros"], ["out"]),
        ],
        {},
        {"out": TensorProto.FLOAT},
    ),
    "Constant": (
        [
            helper.make_node(
                "Constant", [], ["axes"], value=numpy_helper.from_array(np.array([1]))
            ),
            helper.make_node("ReduceSum", ["images", "axes"], ["some"]),
            helper.make_node("Squeeze", ["some", "axes"], ["out"]),
        ],
        {},
        {"out": TensorProto.FLOAT},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_operators__of_several_nodes_agree(name: str) -> None:
    agree(graph_of(*CHAINS[name]))


def test_operators__all_are_tested() -> None:
    nodes = [one for one, _ in FORMS] + [one for some, _, _ in CHAINS.values() for one in some]
    tested = {one.op_type for one in nodes}
    assert tested - {"Constant", "ConstantOfShape"} == set(OPERATORS)


@settings(max_examples=25)
@given(data=st.data())
def test_slice__any_cut_agrees(data: st.DataObject) -> None:
    axis = data.draw(st.integers(-4, 3))
    bounds = st.integers(-12, 12)
    start, end, step = data.draw(bounds), data.draw(bounds), data.draw(st.integers(1, 4))
    constants = {"s": [start], "e": [end], "a": [axis], "t": [step]}
    agree(graph_of([node("Slice", "images", *constants)], constants))


def test_silu__is_one_call_and_exact() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["images"], ["gate"]),
        helper.make_node("Mul", ["gate", "images"], ["out"]),
    ]
    code = agree(graph_of(nodes)).module.code
    assert "silu" in code
    assert "sigmoid" not in code


def test_constants__are_computed_once() -> None:
    nodes = [
        helper.make_node("Exp", ["row"], ["other"]),
        helper.make_node("Mul", ["images", "other"], ["out"]),
    ]
    assert "exp" not in agree(graph_of(nodes, {"row": ROW})).module.code


@pytest.mark.parametrize(
    ("one", "constants", "reason"),
    [
        (
            node("Resize", "images", "", "s", mode="linear"),
            {"s": [1, 1, 2, 2.0]},
            "mode = 'linear'",
        ),
        (node("Resize", "images", "", "s"), {"s": [1, 1, 1.5, 2]}, r"by \[1.0, 1.0, 1.5"),
        (
            node("Resize", "images", "", "s", nearest_mode="floor"),
            {"s": [1, 1, 2, 2]},
            "nearest_mode = 'floor'",
        ),
        (
            node("Resize", "images", "", "s", coordinate_transformation_mode="asymmetric"),
            {"s": [1, 1, 3, 3]},
            "nearest_mode = 'round_prefer_floor'",
        ),
        (node("Conv", "images", "w", auto_pad="SAME_UPPER"), {"w": FILTERS}, "auto_pad"),
        (node("Slice", "images", "s", "e", "", "t"), {"s": [5], "e": [0], "t": [-1]}, "step of -1"),
        (node("ScatterElements", "images", "i", "images", reduction="add"), {}, "reduction"),
        (node("Reshape", "images", "i"), {}, "input 1 that depends on the image"),
        (node("Conv", "images", "w"), {"w": GROUPED[:, :, 0]}, "of 2 dimensions|dimension"),
        (
            node("GridSample", "images", "g"),
            {"g": np.zeros((2, 1, 1, 2), np.float32)},
            "this operator",
        ),
    ],
    ids=lambda part: getattr(part, "op_type", ""),
)
def test_convert__unknown_forms_name_the_node(
    one: onnx.NodeProto, constants: Constants, reason: str
) -> None:
    typed = {
        name: np.array(v, np.float32 if name in "ws" and one.op_type != "Slice" else None)
        for name, v in constants.items()
    }
    index = helper.make_node("ArgMax", ["images"], ["i"], axis=0)
    with pytest.raises(EngineError, match=f"/neck/{one.op_type}' .{one.op_type}.*({reason})"):
        TorchGraph(graph_of([index, one], typed))


def test_convert__old_opset_is_an_error() -> None:
    with pytest.raises(EngineError, match="from opset 13 on, this one has 12"):
        TorchGraph(graph_of([node("Relu", "images")], opset=12))


def test_arithmetic__is_counted_by_type(graph: bytes) -> None:
    assert TorchGraph(graph).arithmetic == {torch.float32: 9}
    assert TorchGraph(to_half(graph), torch.bfloat16).arithmetic == {torch.bfloat16: 9}


@pytest.mark.parametrize("name", ["digits", "hsv_det", "yolo_nas"])
@pytest.mark.parametrize("batch", [1, 2])
def test_convert__networks_of_our_spaces_agree(name: str, batch: int) -> None:
    space, rng = load_space(name), np.random.default_rng(batch)
    architecture = space.candidate(space.sample(rng), 10).architecture.at_input((64, 96))
    torch.manual_seed(0)
    network: nn.Module = Detector(architecture).eval().deploy()
    images = torch.rand(batch, 3, 64, 96)
    converted = TorchGraph(export_onnx(network, 64, 96, batch=batch))
    with torch.inference_mode():
        for found, expected in zip(converted.module(images), network(images), strict=True):
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
