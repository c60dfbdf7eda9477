from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nas.errors import ExportError
from nas.latency.half import to_half
from nas.latency.onnx_export import export_onnx
from nas.latency.onnx_graph import parse_onnx
from nas.latency.quantization import quantize
from nas.latency.runtimes.base import Images
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.model.detector import Detector
from nas.space.space import load_space

FULL, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def images(count: int = 1, side: int = 64) -> Images:
    return np.random.default_rng(0).random((count, 3, side, side), dtype=np.float32)


@pytest.fixture(scope="module")
def detector() -> bytes:
    space = load_space("digits")
    sparse = {"p3_attention": space.choices["p3_attention"][1]}
    point = {**space.anchors["max"], "input": 64, "p4_block": "c2f", **sparse}
    network = Detector(space.candidate(point, classes=10).architecture)
    torch.manual_seed(0)
    for parameter in network.head.parameters():  # so that outputs depend on the image
        nn.init.normal_(parameter, std=0.2)
    return export_onnx(network.deploy(), 64, 64)


def types(onnx_bytes: bytes) -> tuple[ModelProto, dict[str, int]]:
    """The model, and the type of each tensor."""
    model = onnx.shape_inference.infer_shapes(parse_onnx(onnx_bytes), strict_mode=True)
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    found = {one.name: one.type.tensor_type.elem_type for one in values}
    return model, found | {one.name: one.data_type for one in model.graph.initializer}


def of_kind(model: ModelProto, *kinds: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


@pytest.mark.parametrize("half_ends", [False, True])
def test_to_half__ends_have_the_type_that_was_asked_for(detector: bytes, half_ends: bool) -> None:
    model, kinds = types(to_half(detector, half_ends=half_ends))
    onnx.checker.check_model(model, full_check=True)
    ends = [one.name for one in (*model.graph.input, *model.graph.output)]
    assert ends == ["images", "boxes", "scores"]
    assert {kinds[name] for name in ends} == {HALF if half_ends else FULL}


def test_to_half__convolutions_are_half_and_islands_are_full(detector: bytes) -> None:
    model, kinds = types(to_half(detector))
    for node in of_kind(model, "Conv"):
        assert {kinds[name] for name in (*node.input, *node.output)} == {HALF}
    precise = of_kind(model, "Softmax", "LayerNormalization", "TopK", "ReduceSum")
    assert {node.op_type for node in precise} >= {"Softmax", "LayerNormalization", "TopK"}
    for node in precise:
        assert kinds[node.input[0]] == FULL
    producers = {name: node for node in model.graph.node for name in node.output}
    (squares,) = {node.input[0] for node in of_kind(model, "ReduceSum")}
    assert {kinds[name] for name in producers[squares].input} == {FULL}


def test_to_half__nothing_is_cast_twice_or_in_vain(detector: bytes) -> None:
    model, kinds = types(to_half(detector))
    casts = of_kind(model, "Cast")
    made = {name for node in casts for name in node.output}
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)
    for node in casts:
        assert kinds[node.input[0]] != node.attribute[0].i
        assert node.input[0] not in made


def test_to_half__weights_are_stored_once_and_small(detector: bytes) -> None:
    half = to_half(detector)
    assert len(half) < 0.65 * len(detector)


def test_to_half__agrees_with_fp32(detector: bytes) -> None:
    full, half = (OnnxRuntime().evaluate(one, images()) for one in (detector, to_half(detector)))
    for name, expected in full.items():
        assert expected.std() > 0.01 * np.abs(expected).max()
        assert half[name].dtype == np.float32
        assert np.abs(half[name] - expected).max() <= 0.02 * np.abs(expected).max()


def test_to_half__evaluation_rounds_to_half() -> None:
    # Else agreement above would prove nothing.
    half = to_half(export_onnx(Rounding().eval(), 8, 8))
    found = OnnxRuntime().evaluate(half, np.full((1, 3, 8, 8), 0.3, np.float32))["scores"]
    assert np.unique(found).tolist() == [0.0]


class Rounding(nn.Module):
    """x + 2048 - 2048 before a convolution: 0 in half precision for x below 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.conv((x + 2048.0) - 2048.0).flatten(2).transpose(1, 2)
        return tokens[..., :4], tokens


class Far(nn.Module):
    """Boxes thousands of pixels away, and token scores whose squares half precision cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = 3000 * self.conv(x)
        top = maps.flatten(2).square().sum(1).topk(4, 1).indices
        tokens = maps.flatten(2).gather(2, top.unsqueeze(1).expand(-1, 5, -1))
        distances = self.last(tokens.unsqueeze(3)).flatten(2).transpose(1, 2) / 3000
        return 4000 + 10 * distances[..., :4].sigmoid(), distances


def test_to_half__keeps_coordinates_and_finite_scores() -> None:
    torch.manual_seed(0)
    graph = export_onnx(Far().eval(), 16, 16)
    full, half = (OnnxRuntime().evaluate(one, images(side=16)) for one in (graph, to_half(graph)))
    assert np.ptp(full["boxes"]) > 0.5
    # Half precision steps by 2 between 2048 and 4096.
    assert np.abs(half["boxes"] - full["boxes"]).max() < 0.1


def test_to_half__quantized_graph_has_no_cast_at_convolutions(detector: bytes) -> None:
    half = to_half(quantize(detector, images(4)))
    model, kinds = types(half)
    producers = {name: node for node in model.graph.node for name in node.output}
    pairs = of_kind(model, "QuantizeLinear", "DequantizeLinear")
    assert Counter(kinds[node.input[1]] for node in pairs) == {HALF: len(pairs)}
    integer = [n for n in of_kind(model, "Conv") if producers.get(n.input[1])]
    assert integer
    for node in integer:
        assert {producers[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}
    full = OnnxRuntime().evaluate(quantize(detector, images(4)), images())
    found = OnnxRuntime().evaluate(half, images())
    for name, expected in full.items():
        assert np.median(np.abs(found[name] - expected)) <= 0.05 * expected.std()


def test_to_half__twice_is_an_error(detector: bytes) -> None:
    with pytest.raises(ExportError, match="half weights"):
        to_half(to_half(detector))


def test_to_half__weight_out_of_range_is_named(detector: bytes) -> None:
    model = parse_onnx(detector)
    weight = next(one for one in model.graph.initializer if one.name.endswith("conv.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.flat[3] = -70_000
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportError, match=f"{weight.name}' holds -70000"):
        to_half(model.SerializeToString())


@settings(max_examples=25)
@given(
    steps=st.lists(st.sampled_from(["Relu", "Softmax", "Square", "Reshape", "Conv"]), max_size=7)
)
def test_to_half__any_chain_keeps_its_types(steps: list[str]) -> None:
    model, kinds = types(to_half(chain(steps)))
    assert kinds["images"] == kinds["out"] == FULL
    for node in of_kind(model, "Conv", "Softmax"):
        assert kinds[node.input[0]] == (HALF if node.op_type == "Conv" else FULL)


def chain(steps: list[str]) -> bytes:
    nodes: list[NodeProto] = []
    name = "images"
    for index, step in enumerate([*steps, "Identity"]):
        after = "out" if index == len(steps) else f"t{index}"
        inputs: dict[str, tuple[str, list[str], dict[str, Any]]] = {
            "Square": ("Mul", [name, name], {}),
            "Reshape": ("Reshape", [name, "shape"], {}),
            "Conv": ("Conv", [name, "weight"], {}),
        }
        kind, names, settings_ = inputs.get(step, (step, [name], {}))
        nodes.append(helper.make_node(kind, names, [after], **settings_))
        name = after
    values = [helper.make_tensor_value_info(one, FULL, [1, 3, 4, 4]) for one in ("images", "out")]
    weights = [
        numpy_helper.from_array(np.array([1, 3, 4, 4]), "shape"),
        numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "weight"),
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())
