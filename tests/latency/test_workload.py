from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from nas.errors import ExportError
from nas.latency.onnx_export import export_graph, export_onnx
from nas.latency.quantization import quantize
from nas.latency.workload import Layer, Workload
from nas.model.blocks.attention import build_attention
from nas.model.detector import Detector, profile
from nas.space.architecture import Architecture
from nas.space.attention import AttentionPoint
from nas.space.space import load_space


def exported(architecture: Architecture) -> bytes:
    return export_onnx(Detector(architecture).deploy(), *architecture.input)


def workload_of(module: nn.Module, *shape: int) -> Workload:
    graph = export_graph(module.eval(), torch.zeros(1, 3, *shape), "images", ["y"])
    return Workload.from_onnx(graph)


def anchor(space: str, name: str, side: int) -> Architecture:
    found = load_space(space)
    return found.candidate(found.anchors[name], 80).architecture.at_input((side, side))


ANCHORS = [("hsv_det", "yolov8n"), ("hsv_det", "hsv_det"), ("yolo_nas", "S"), ("digits", "max")]


@pytest.mark.parametrize(("space", "name"), ANCHORS)
def test_workload__counts_the_macs_of_the_detector(space: str, name: str) -> None:
    architecture = anchor(space, name, 128)
    assert Workload.from_onnx(exported(architecture)).macs == profile(architecture).macs


@pytest.mark.parametrize("side", [64, 96])
def test_workload__counts_the_macs_of_random_candidates(side: int) -> None:
    space = load_space("digits")
    for seed in range(3):
        point = {**space.sample(np.random.default_rng(seed)), "input": 64}
        architecture = space.candidate(point, 10).architecture.at_input((side, side))
        assert Workload.from_onnx(exported(architecture)).macs == profile(architecture).macs


POINTS = [
    AttentionPoint(kind="dense"),
    AttentionPoint(kind="sparse", tokens=8),
    AttentionPoint(kind="aifi"),
    AttentionPoint(kind="psa"),
    AttentionPoint(kind="windowed", window=4),
    AttentionPoint(kind="strided", stride=2),
    AttentionPoint(kind="lsh", buckets=4),
    AttentionPoint(kind="deformable", points=2),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.kind)
def test_workload__counts_the_products_of_attention(point: AttentionPoint) -> None:
    attention = build_attention(point, 64, (8, 8))
    stem = nn.Conv2d(3, 64, 1)
    macs = workload_of(nn.Sequential(stem, attention), 8, 8).macs
    # Deformable attention mixes its places by pointwise operators, not by products.
    pointwise = attention.mixing_macs if point.kind == "deformable" else 0
    assert macs - 64 * 3 * 64 == attention.macs - pointwise


def test_workload__parameters_are_those_of_the_convolutions() -> None:
    architecture = anchor("hsv_det", "yolov8n", 64)
    layers = Workload.from_onnx(exported(architecture)).layers
    held = sum(layer.weights for layer in layers if layer.kind == "convolution")
    assert held == profile(architecture).parameters


def test_workload__activations_and_shortcuts_run_inside_convolutions() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 1)
            self.conv = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + nn.functional.silu(self.conv(x))

    first, second = workload_of(Bottleneck(), 8, 8).layers
    assert first.operators == ("Conv",)
    assert second.operators == ("Conv", "Sigmoid", "Mul", "Add")
    assert second.reads == 16 * 64
    assert second.writes == 16 * 64
    assert second.weights == 16 * 16 * 9 + 16
    assert (second.kernel, second.stride, second.positions) == ((3, 3), 1, 64)


class _Joined(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.join = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.left(x), self.right(x))


def test_workload__concatenation_of_layers_is_free() -> None:
    workload = workload_of(_Joined(lambda a, b: torch.cat([a, b], 1)), 8, 8)
    assert [layer.kind for layer in workload.layers] == ["convolution", "convolution"]
    assert [layer.writes for layer in workload.layers] == [512, 512]


def test_workload__a_tensor_in_two_concatenations_is_copied_once() -> None:
    def twice(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 1).relu().mean() + torch.cat([b, a], 1).relu().mean()

    kinds = [layer.kind for layer in workload_of(_Joined(twice), 8, 8).layers]
    assert kinds.count("movement") == 1


def test_workload__reads_of_a_concatenation_are_all_of_its_parts() -> None:
    net = nn.Sequential(_Joined(lambda a, b: torch.cat([a, b], 1)), nn.Conv2d(16, 4, 1))
    assert workload_of(net, 8, 8).layers[-1].reads == 16 * 64


def test_workload__pointwise_of_another_size_is_a_layer() -> None:
    gate = workload_of(_Joined(lambda a, b: a.mean((2, 3), keepdim=True).sigmoid() * b), 8, 8)
    assert [layer.kind for layer in gate.layers].count("reduction") == 1
    assert [layer.operators for layer in gate.layers[-2:]] == [("Sigmoid",), ("Mul",)]


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 24),
    multiple=st.integers(1, 3),
    grouped=st.booleans(),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    side=st.integers(6, 17),
)
def test_convolution__equals_its_definition(
    channels: int, multiple: int, *, grouped: bool, kernel: int, stride: int, side: int
) -> None:
    groups, outputs = channels if grouped else 1, channels * multiple
    conv = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    with torch.no_grad():
        stem = nn.Conv2d(3, channels, 1, bias=False)
        out = conv(stem(torch.zeros(1, 3, side, side)))
    layer = workload_of(nn.Sequential(stem, conv), side, side).layers[-1]
    assert layer.macs == out.numel() * channels // groups * kernel**2
    assert layer.weights == conv.weight.numel()
    assert (layer.reads, layer.writes) == (channels * side**2, out.numel())
    assert layer.padded_macs >= layer.macs
    assert layer.aligned == (layer.padded_macs == layer.macs)
    assert layer.groups * layer.out_channels * layer.positions == out.numel()


def test_transposed_convolution__multiplies_each_input_with_each_tap() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 16, 2, 2, bias=False))
    layer = workload_of(net, 6, 6).layers[-1]
    assert layer.macs == 36 * 8 * 16 * 4
    assert (layer.in_channels, layer.out_channels, layer.shape) == (8, 16, (1, 16, 12, 12))


def test_padding__rounds_both_channels_up_to_vectors() -> None:
    layer = Layer(
        name="stem", kind="convolution", operators=("Conv",), macs=3 * 16, in_channels=3,
        out_channels=16,
    )  # fmt: skip
    assert layer.padded_macs == 8 * 16
    assert not layer.aligned


def test_workload__quantized_graph_has_the_same_layers(graph: bytes) -> None:
    plain, integer = Workload.from_onnx(graph), Workload.from_onnx(quantize(graph))
    assert integer.macs == plain.macs
    convolutions = [one for one in integer.layers if one.kind == "convolution"]
    assert [one.macs for one in convolutions] == [
        one.macs for one in plain.layers if one.kind == "convolution"
    ]


def test_workload__totals_add_up() -> None:
    workload = Workload.from_onnx(exported(anchor("digits", "min", 64)))
    assert workload.launches == len(workload.layers)
    assert workload.input == (64, 64)
    assert workload.traffic > workload.weights > 0
    assert 0 < workload.aligned_share <= 1


def _graph(operator: str, size: object = 8, domain: str = "") -> bytes:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node(operator, ["images"], ["y"], name="strange", domain=domain)
    graph = helper.make_graph([node], "g", [images], [output])
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("here", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())


def test_workload__unknown_operator_is_named_with_its_node() -> None:
    with pytest.raises(ExportError, match=r"operator Det of node 'strange'"):
        Workload.from_onnx(_graph("Det"))
    with pytest.raises(ExportError, match=r"operator Relu of node 'strange'"):
        Workload.from_onnx(_graph("Relu", domain="here"))


def test_workload__dynamic_shape_is_refused() -> None:
    with pytest.raises(ExportError, match="static"):
        Workload.from_onnx(_graph("Relu", size="height"))


def test_workload__shape_that_depends_on_the_image_is_refused() -> None:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    node = helper.make_node("NonZero", ["images"], ["y"])
    graph = helper.make_graph([node], "g", [images], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    with pytest.raises(ExportError, match="'y' must have a static shape"):
        Workload.from_onnx(bytes(model.SerializeToString()))


def test_workload__garbage_is_refused() -> None:
    with pytest.raises(ExportError, match="not an ONNX model"):
        Workload.from_onnx(b"\x07garbage")
