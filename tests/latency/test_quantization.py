from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from nas.errors import EngineError, ExportError, InputError
from nas.latency.onnx_export import export_onnx
from nas.latency.onnx_graph import GraphView, parse_onnx
from nas.latency.quantization import _Histogram, at_precision, quantize
from nas.latency.reference import reference_onnx
from nas.latency.runtimes.base import Images
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.model.detector import Detector
from nas.space.architecture import Architecture
from nas.space.space import load_space


def images(count: int = 4, side: int = 64) -> Images:
    return np.random.default_rng(0).random((count, 3, side, side), dtype=np.float32)


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    """Every kind of block, with sparse and dense attention."""
    space = load_space("digits")
    sparse = {one: space.choices[one][1] for one in ("p3_attention", "p4_attention")}
    point = {**space.anchors["max"], "input": 64, "p4_block": "c2f", **sparse}
    return space.candidate(point, classes=10).architecture


@pytest.fixture(scope="module")
def detector(architecture: Architecture) -> bytes:
    torch.manual_seed(0)
    return export_onnx(Detector(architecture).deploy(), 64, 64)


@pytest.fixture(scope="module")
def model(detector: bytes) -> ModelProto:
    return parse_onnx(quantize(detector, images()))


@pytest.fixture(scope="module")
def view(model: ModelProto) -> GraphView:
    return GraphView(model)


def quantizers(view: GraphView) -> list[NodeProto]:
    return [node for node in view.nodes if node.op_type == "QuantizeLinear"]


def convolutions(view: GraphView) -> tuple[list[NodeProto], list[NodeProto]]:
    """Those with integer weights, and the others."""
    found: tuple[list[NodeProto], list[NodeProto]] = ([], [])
    for node in view.nodes:
        if node.op_type == "Conv":
            producer = view.producer(node.input[1])
            integer = producer is not None and producer.op_type == "DequantizeLinear"
            found[0 if integer else 1].append(node)
    return found


def value(view: GraphView, name: str) -> np.ndarray:
    return numpy_helper.to_array(view.constants[name])


def test_quantize__is_a_valid_graph_with_the_same_ends(model: ModelProto, detector: bytes) -> None:
    onnx.checker.check_model(model, full_check=True)
    plain = parse_onnx(detector)
    assert list(model.graph.input) == list(plain.graph.input)
    assert list(model.graph.output) == list(plain.graph.output)
    assert [one.version for one in model.opset_import] == [19]


def test_quantize__activations_are_symmetric_with_one_scale(view: GraphView) -> None:
    for node in quantizers(view):
        scale, zero = (value(view, name) for name in node.input[1:])
        assert scale.shape == ()
        assert scale > 0
        assert (zero.dtype, zero.item()) == (np.int8, 0)
        (reader,) = view.readers(node.output[0])
        assert reader.op_type == "DequantizeLinear"
        assert reader.input[1:] == node.input[1:]


def test_quantize__weights_are_within_half_a_step_of_each_channel(
    view: GraphView, detector: bytes
) -> None:
    plain = GraphView(parse_onnx(detector))
    originals = {node.output[0]: node for node in plain.nodes}
    integer, _ = convolutions(view)
    assert integer
    for node in integer:
        weight = view.producer(node.input[1])
        assert weight is not None
        steps, scales = (value(view, name) for name in weight.input)
        original = value(plain, originals[node.output[0]].input[1])
        assert steps.dtype == np.int8
        assert steps.min() >= -127
        assert scales.shape == (len(original),)
        wide = scales.reshape(-1, 1, 1, 1)
        assert np.abs(steps * wide - original).max(initial=0) <= wide.max() * 0.501


def test_quantize__convolutions_read_pairs_and_no_pair_follows_a_convolution(
    view: GraphView,
) -> None:
    integer, _ = convolutions(view)
    for node in integer:
        producer = view.producer(node.input[0])
        assert producer is not None
        assert producer.op_type == "DequantizeLinear"
    for node in quantizers(view):
        producer = view.producer(node.input[0])
        assert producer is None or producer.op_type != "Conv"


def test_quantize__leaves_predictors_attention_and_scores_in_floating_point(
    view: GraphView,
) -> None:
    _, floating = convolutions(view)
    assert len(floating) == 6 + 3 * 2  # class and box predictors, queries and keys
    for kind in ("Softmax", "MatMul", "TopK", "LayerNormalization", "Sigmoid", "GatherElements"):
        for node in (one for one in view.nodes if one.op_type == kind):
            producers = [view.producer(name) for name in node.input]
            assert all(one is None or one.op_type != "DequantizeLinear" for one in producers)


def test_quantize__identity_of_residuals_is_quantized(view: GraphView) -> None:
    def dequantized(name: str) -> bool:
        producer = view.producer(name)
        if producer is not None and producer.op_type == "Mul":
            return any(dequantized(one) for one in producer.input)
        return producer is not None and producer.op_type == "DequantizeLinear"

    additions = [
        node for node in view.nodes if node.op_type == "Add" and "bottlenecks" in node.output[0]
    ]
    assert additions
    assert all(sum(map(dequantized, node.input)) == 1 for node in additions)


def test_quantize__what_is_concatenated_shares_a_scale(view: GraphView) -> None:
    shared = 0
    for node in view.nodes:
        after = [one for one in view.readers(node.output[0]) if one.op_type == "QuantizeLinear"]
        if node.op_type == "Concat" and after:
            scales = {value(view, one.input[1]).item() for one in after}
            for name in node.input:
                scales |= source_scales(view, name)
            assert len(scales) == 1
            shared += 1
    assert shared > 10


def source_scales(view: GraphView, name: str) -> set[float]:
    producer = view.producer(name)
    assert producer is not None
    if producer.op_type == "DequantizeLinear":
        return {value(view, producer.input[1]).item()}
    assert producer.op_type in ("MaxPool", "Resize", "Split", "Concat")
    return source_scales(view, producer.input[0])


def test_quantize__placeholders_differ_in_scales_only(model: ModelProto, detector: bytes) -> None:
    bare = parse_onnx(quantize(detector))
    assert list(bare.graph.node) == list(model.graph.node)
    assert {one.name for one in bare.graph.initializer} == {
        one.name for one in model.graph.initializer
    }


def test_quantize__first_convolution_can_be_left_out(detector: bytes) -> None:
    view = GraphView(parse_onnx(quantize(detector, first_convolution=False)))
    assert all(node.input[0] != "images" for node in quantizers(view))
    assert quantizers(view)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.last(self.depthwise(self.first(x))).flatten(2).transpose(1, 2)
        return tokens[..., :4], tokens


def test_quantize__depthwise_stays(architecture: Architecture) -> None:
    view = GraphView(parse_onnx(quantize(export_onnx(Depthwise().eval(), 16, 16))))
    integer, floating = convolutions(view)
    assert [node.output[0] for node in integer] == ["/first/Conv_output_0"]
    assert len(floating) == 2


def test_quantize__twice_is_an_error(model: ModelProto) -> None:
    with pytest.raises(ExportError, match="DequantizeLinear, QuantizeLinear"):
        quantize(model.SerializeToString())


def test_quantize__old_opset_is_an_error(detector: bytes) -> None:
    old = parse_onnx(detector)
    old.opset_import[0].version = 17
    with pytest.raises(ExportError, match=r"opset 19, this one has 17"):
        quantize(old.SerializeToString())


class NoConvolution(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([tokens, tokens[..., :1]], 2), tokens


def test_quantize__nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(ExportError, match="none that it could run"):
        quantize(export_onnx(NoConvolution().eval(), 8, 8))


@pytest.mark.parametrize(
    "wrong",
    [images(0), images(side=32), images().astype(np.float64), images()[0]],
    ids=["none", "smaller", "float64", "no-batch"],
)
def test_quantize__other_images_are_errors(detector: bytes, wrong: Images) -> None:
    with pytest.raises(InputError, match=r"\(n, 3, 64, 64\)"):
        quantize(detector, wrong)


def test_quantize__values_that_are_not_finite_are_errors(detector: bytes) -> None:
    broken = images()
    broken[2, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="image 2"):
        quantize(detector, broken)


def test_quantize__black_images_calibrate(detector: bytes) -> None:
    onnx.checker.check_model(parse_onnx(quantize(detector, np.zeros_like(images(1)))))


class Concatenating(nn.Module):
    """Concatenates what is also read elsewhere, and pooled and upsampled values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.third, self.last = nn.Conv2d(48, 16, 3, 1, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = nn.functional.silu(self.first(x))
        coarse = nn.functional.interpolate(self.second(fine).relu(), scale_factor=2.0)
        pooled = nn.functional.max_pool2d(fine, 3, 1, 1)
        merged = self.third(torch.cat([fine, coarse, pooled], 1)).relu()
        tokens = self.last(merged).flatten(2).transpose(1, 2)
        return tokens[..., :4], tokens


def test_openvino__computes_what_the_graph_says_at_concatenations() -> None:
    torch.manual_seed(0)
    graph = quantize(export_onnx(Concatenating().eval(), 64, 64), images())
    with OpenVinoRuntime().build(graph, "int8") as engine:
        found = engine.infer(images(1))["scores"]
        said = engine.describe()
    literal = OnnxRuntime().evaluate(graph, images(1))["scores"]
    assert said["int8 layers"] == "3 of 3 quantised"
    noise = ((found - literal) ** 2).mean() / literal.var()
    assert noise < 1e-3  # 30 dB; reading the pairs as they are gives about 0 dB without AMX


def test_openvino__asymmetric_quantizer_is_an_error(model: ModelProto) -> None:
    wrong = parse_onnx(model.SerializeToString())
    for weight in wrong.graph.initializer:
        if weight.name.endswith("/zero_point"):
            weight.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), weight.name))
    with pytest.raises(EngineError, match="zero point 0"):
        OpenVinoRuntime().build(wrong.SerializeToString(), "int8")


@settings(max_examples=50)
@given(
    st.lists(
        hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)),
        min_size=1,
        max_size=4,
    )
)
def test_histogram__limit_is_no_worse_than_the_largest_value(parts: list[np.ndarray]) -> None:
    histogram = _Histogram()
    for part in parts:
        histogram.add(part)
    values = np.abs(np.concatenate(parts)).astype(np.float64)
    limit, largest = histogram.limit(), values.max()
    assert 0 <= limit <= largest * (1 + 1 / 512) + 1e-15
    if largest > 1e-15:
        # The bins are narrower than a step, but not infinitely narrow.
        assert rounding_error(values, limit) <= rounding_error(values, largest) + largest / 500


def rounding_error(values: np.ndarray, limit: float) -> float:
    scale = limit / 127
    rounded = np.rint(values / scale).clip(max=127) * scale
    return float(np.sqrt(((rounded - values) ** 2).mean()))


def test_quantize__names_of_its_own_whatever_the_graph_is_called() -> None:
    """The reference calls its weights `weight1`, and a graph may be called as our own were."""
    model = onnx.load_from_string(reference_onnx())
    for node in model.graph.node:
        node.input[:] = [name if name in ("", "images") else f"int8/{name}" for name in node.input]
        node.output[:] = [f"int8/{name}" for name in node.output]
    for one in (*model.graph.initializer, *model.graph.output):
        one.name = f"int8/{one.name}"
    for graph in (reference_onnx(), model.SerializeToString()):
        quantized = quantize(graph)
        onnx.checker.check_model(onnx.load_from_string(quantized), full_check=True)
        OpenVinoRuntime().build(quantized, "int8").close()


def test_at_precision__only_int8_has_a_graph_of_its_own(detector: bytes) -> None:
    assert at_precision(detector, "fp32") is detector
    assert at_precision(detector, "bf16") is detector
    quantized = at_precision(detector, "int8")
    assert quantized == quantize(detector)
    assert at_precision(quantized, "int8") is quantized
