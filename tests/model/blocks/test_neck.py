from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nas import plugins
from nas.latency.onnx_export import export_onnx
from nas.model.blocks.convolution import ConvBN
from nas.model.blocks.layers import WeightedSum
from nas.model.blocks.neck import FeaturePyramid, PathAggregation, neck
from nas.model.blocks.neck_bifpn import WeightedPyramid
from nas.model.blocks.neck_parts import Neck
from nas.model.detector import Detector, decode, profile
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture

Build = Callable[..., Architecture]
Features = tuple[Tensor, ...]
WIDE = {"kind": "bifpn", "repeats": 2, "upsample": "transposed", "convolution": "repvgg"}
NECKS: list[dict[str, Any]] = [
    {},
    {"upsample": "transposed"},
    {"halve": True, "convolution": "qarepvgg"},
    {"reduce": True},
    {"reduce": True, "three_inputs": True, "halve": True, "upsample": "transposed"},
    {"kind": "fpn"},
    {"kind": "fpn", "upsample": "transposed"},
    {"kind": "bifpn"},
    WIDE,
]
KINDS = [{"kind": "pan"}, {"kind": "fpn"}, {"kind": "bifpn"}, WIDE]


@pytest.fixture(scope="module")
def build(build_architecture: Build) -> Build:
    """An architecture with fields of its neck replaced, fusions (`P4=...`) among them."""

    def make(options: dict[str, Any], **fields: Any) -> Architecture:
        plain = build_architecture(**fields)
        spec = plain.neck.model_dump() | options
        if spec["kind"] == "fpn":
            spec["bottom_up"] = None
        return build_architecture(**fields, neck=spec)

    return make


def _features(architecture: Architecture, batch: int = 1) -> Features:
    stages = architecture.backbone
    generator = torch.Generator().manual_seed(3)
    return tuple(
        torch.rand(
            batch,
            getattr(stages, level).channels,
            *architecture.feature_size(level),
            generator=generator,
        )
        for level in ("P2", "P3", "P4", "P5")
    )


def _mix(module: torch.nn.Module, randomize: Callable[..., None]) -> None:
    """Give statistics, scales and the weights of sums values that tell wrong algebra."""
    randomize(module)
    generator = torch.Generator().manual_seed(7)
    for layer in module.modules():
        if isinstance(layer, WeightedSum):
            with torch.no_grad():
                layer.weight.copy_(torch.rand(len(layer.weight), generator=generator) * 2 - 0.5)


@pytest.mark.parametrize("size", [[64, 96], [72, 104], [1080, 1920]], ids=str)
@pytest.mark.parametrize("options", NECKS, ids=str)
def test_neck__keeps_the_size_of_every_level(
    options: dict[str, Any], size: list[int], build: Build
) -> None:
    architecture = build(options, attention={}, input=size)
    with torch.no_grad():
        outputs = neck(architecture)(_features(architecture))
    for level, output in zip(("P3", "P4", "P5"), outputs, strict=True):
        assert tuple(output.shape[2:]) == architecture.feature_size(level)
    assert tuple(output.shape[1] for output in outputs) == architecture.neck_channels


def test_neck__upsampled_positions_lie_where_a_stride_2_convolution_saw_them(
    build_architecture: Build,
) -> None:
    module = PathAggregation(build_architecture(input=[72, 104], attention={}))
    step = module.top_down["P3"]
    coarse = torch.rand(1, 16, 5, 7)
    assert torch.equal(step.upsample(coarse)[:, :, ::2, ::2], coarse)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_neck__attends_where_the_architecture_says(options: dict[str, Any], build: Build) -> None:
    points = {"P3": {"tokens": 4}, "P5": {"kind": "dense"}}
    module = neck(build(options, attention=points))
    assert {name: block.tokens for name, block in module.attention.items()} == {"P3": 4, "P5": None}


def test_neck__reduced_bottom_up_meets_the_first_1x1_output_again(build: Build) -> None:
    architecture = build({"reduce": True, "halve": True})
    module = PathAggregation(architecture)
    block = module.bottom_up["P5"].block.reduced.qarepvgg_csp
    half = architecture.neck.bottom_up.P5.channels // 2
    assert block.conv1.conv.in_layout == (half, architecture.neck.top_down.P4.channels)


def _twice(x: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbour by index: what lies at (y, x) comes from (y // 2, x // 2)."""
    height, width = like.shape[2:]
    return x[:, :, torch.arange(height) // 2][:, :, :, torch.arange(width) // 2]


def _normalised(terms: list[Tensor], weights: Tensor) -> Tensor:
    positive = [max(float(weight), 0.0) for weight in weights]
    total = sum(positive) + 1e-4
    return torch.stack([w / total * x for w, x in zip(positive, terms, strict=True)]).sum(0)


def _attended(module: Neck, level: str, x: Tensor) -> Tensor:
    return module.attention[level](x) if level in module.attention else x


def _pyramid(module: FeaturePyramid, features: Features) -> list[Tensor]:
    _, p3, p4, p5 = features
    p5 = _attended(module, "P5", p5)
    top = module.top_down
    p4 = _attended(module, "P4", top["P4"].block(torch.cat([_twice(p5, p4), p4], 1)))
    p3 = _attended(module, "P3", top["P3"].block(torch.cat([_twice(p4, p3), p3], 1)))
    return [p3, p4, p5]


def _aggregation(module: PathAggregation, features: Features) -> list[Tensor]:
    p3, p4, p5 = _pyramid(module, features)
    down = module.bottom_up
    n4 = down["P4"].block(torch.cat([down["P4"].down(p3), p4], 1))
    return [p3, n4, down["P5"].block(torch.cat([down["P5"].down(n4), p5], 1))]


def _weighted(module: WeightedPyramid, features: Features) -> list[Tensor]:
    _, p3, p4, p5 = features
    p5 = _attended(module, "P5", p5)
    p3, p4, p5 = (module.project[f"P{n}"](x) for n, x in ((3, p3), (4, p4), (5, p5)))

    def term(node: Any, place: int, x: Tensor) -> Tensor:
        way = node.terms[place]
        return way[0](x) if isinstance(way, torch.nn.Sequential) else way(x)

    for number, layer in enumerate(module.layers):
        node = layer.top_down["P4"]
        terms = [term(node, 0, p4), _twice(term(node, 1, p5), p4)]
        middle = node.block(_normalised(terms, node.sum.weight))
        middle = middle if number else _attended(module, "P4", middle)
        node = layer.top_down["P3"]
        terms = [term(node, 0, p3), _twice(term(node, 1, middle), p3)]
        out3 = node.block(_normalised(terms, node.sum.weight))
        out3 = out3 if number else _attended(module, "P3", out3)
        node = layer.bottom_up["P4"]
        terms = [term(node, 0, p4), term(node, 1, middle), term(node, 2, out3)]
        out4 = node.block(_normalised(terms, node.sum.weight))
        node = layer.bottom_up["P5"]
        terms = [term(node, 0, p5), term(node, 1, out4)]
        p3, p4, p5 = out3, out4, node.block(_normalised(terms, node.sum.weight))
    return [p3, p4, p5]


@pytest.mark.parametrize("size", [[64, 96], [72, 104]], ids=str)
@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, _aggregation),
        ({"halve": True}, _aggregation),
        ({"kind": "fpn"}, _pyramid),
        ({"kind": "bifpn"}, _weighted),
        ({"kind": "bifpn", "repeats": 3, "convolution": "qarepvgg"}, _weighted),
    ],
    ids=["pan", "halving pan", "fpn", "bifpn", "three times bifpn"],
)
def test_neck__equals_the_formulas(
    options: dict[str, Any],
    reference: Callable[..., list[Tensor]],
    size: list[int],
    build: Build,
    randomize: Callable[..., None],
) -> None:
    points = {"P3": {"tokens": 4}, "P4": {"kind": "dense"}, "P5": {"kind": "dense"}}
    architecture = build(options, input=size, attention=points)
    module = neck(architecture).eval()
    _mix(module, randomize)
    features = _features(architecture, batch=2)
    with torch.no_grad():
        pairs = zip(module(features), reference(module, features), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("widths", list(itertools.product((5, 16), repeat=4)), ids=str)
def test_bifpn__projects_exactly_the_terms_of_other_widths(
    widths: tuple[int, ...], build: Build, fusion: Callable[..., dict[str, Any]]
) -> None:
    top4, out3, out4, out5 = widths
    architecture = build(
        {
            "kind": "bifpn",
            "repeats": 2,
            "top_down": {"P4": fusion(top4, 4), "P3": fusion(out3, 4)},
            "bottom_up": {"P4": fusion(out4, 4), "P5": fusion(out5, 4)},
        }
    )
    module = WeightedPyramid(architecture)
    outputs = module(_features(architecture))
    assert [output.shape[1] for output in outputs] == [out3, out4, out5]
    projected = {
        name
        for name, unit in module.layers[1].named_modules()
        if ".terms." in name and isinstance(unit, ConvBN) and unit.kernel == 1
    }
    terms = {
        "top_down.P4.terms.0": out4 != top4,
        "top_down.P4.terms.1.0": out5 != top4,
        "top_down.P3.terms.1.0": top4 != out3,
        "bottom_up.P4.terms.1": top4 != out4,
    }
    assert projected == {name for name, differs in terms.items() if differs}


def test_weighted_sum__starts_as_the_mean_and_ignores_negative_weights() -> None:
    terms = [torch.full((1, 2, 3, 3), value) for value in (1.0, 2.0, 6.0)]
    total = WeightedSum(3)
    assert torch.allclose(total(*terms), torch.tensor(9 / 3.0001))
    with torch.no_grad():
        total.weight.copy_(torch.tensor([1.0, -5.0, 3.0]))
    assert torch.allclose(total(*terms), torch.tensor((1 + 18) / 4.0001))
    total(*terms).sum().backward()
    assert total.weight.grad is not None
    assert total.weight.grad[1] == 0
    assert total.weight.grad[2] > 0


@given(weights=st.lists(st.floats(-2, 5, width=32), min_size=1, max_size=5))
@settings(deadline=None, max_examples=40)
def test_weighted_sum__folds_into_constants(weights: list[float]) -> None:
    total = WeightedSum(len(weights))
    with torch.no_grad():
        total.weight.copy_(torch.tensor(weights))
    terms = torch.randn(len(weights), 2, 4, generator=torch.Generator().manual_seed(1)).unbind()
    fused = total.fuse()
    assert not list(fused.parameters())
    torch.testing.assert_close(fused(*terms), total(*terms))
    positive = sum(max(weight, 0) for weight in weights)
    assert sum(fused.shares) == pytest.approx(positive / (positive + 1e-4), abs=1e-6)


@pytest.fixture(params=KINDS[1:], ids=str, scope="module")
def odd(request: pytest.FixtureRequest, build: Build) -> Architecture:
    """A network whose levels have odd sizes: 9x13, 5x7, 3x4."""
    return build(request.param, input=[72, 104], attention={"P4": {"tokens": 7}})


def test_deployed__equals_evaluation_mode(
    odd: Architecture, randomize: Callable[..., None]
) -> None:
    detector = Detector(odd).eval()
    _mix(detector, randomize)
    images = torch.rand(2, 3, 72, 104)
    deployed = detector.deploy()
    with torch.no_grad():
        predictions = detector(images)
        boxes, scores = deployed(images)
    torch.testing.assert_close(scores, predictions.logits.sigmoid(), rtol=0, atol=1e-4)
    torch.testing.assert_close(boxes, decode(predictions), rtol=1e-4, atol=1e-2)
    assert profile(odd).parameters == sum(p.numel() for p in deployed.parameters())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_export__engines_agree(
    odd: Architecture, runtime: str, randomize: Callable[..., None]
) -> None:
    detector = Detector(odd).eval()
    _mix(detector, randomize)
    deployed = detector.deploy()
    images = torch.rand(1, 3, 72, 104, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = deployed(images)
    onnx = export_onnx(deployed, 72, 104)
    with plugins.load("runtimes", runtime)().build(onnx, "fp32") as engine:
        found = engine.infer(images.numpy())
    for name, wanted in zip(("boxes", "scores"), expected, strict=True):
        scale = float(wanted.abs().max())
        assert np.abs(found[name] - wanted.numpy()).max() < 1e-4 * scale


@pytest.fixture(scope="module")
def every_neck(build: Build) -> Supernet:
    """Shared weights of all kinds and styles, with two repeats of BiFPN."""
    supernet = Supernet([build(options, attention={}) for options in NECKS], seed=1)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in supernet.parameters():
            if tensor.ndim == 1 and len(tensor) in (2, 3):
                tensor.copy_(torch.rand(len(tensor), generator=generator))
    return supernet


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), options=st.sampled_from(NECKS), training=st.booleans())
def test_supernet__activates_what_it_extracts(
    every_neck: Supernet, build: Build, data: st.DataObject, options: Any, training: bool
) -> None:
    spec = build(options).neck.model_dump()
    for path in filter(None, (spec["top_down"], spec["bottom_up"])):
        for block in path.values():
            block["hidden"] = data.draw(st.integers(1, block["hidden"]))
    if spec["kind"] == "bifpn":
        spec["repeats"] = data.draw(st.integers(1, spec["repeats"]))
    architecture = build(spec, attention={}, input=[72, 96])
    every_neck.train(training)
    images = torch.rand(2, 3, 72, 96, generator=torch.Generator().manual_seed(2))
    found, expected = every_neck(images, architecture), every_neck.extract(architecture)(images)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.bins, expected.bins)


def test_supernet__kinds_and_styles_share_only_what_means_the_same(build: Build) -> None:
    def names(options: dict[str, Any]) -> set[str]:
        module = neck(build(options | {"upsample": "transposed"}, attention={}))
        return {name for name, _ in module.named_parameters()}

    plain, reduced = names({}), names({"reduce": True})
    three = names({"reduce": True, "three_inputs": True})
    assert {name.split(".")[2] for name in plain & reduced} == {"down"}
    assert {
        name for name in reduced ^ three if ".reduce." not in name and ".lower." not in name
    } == set()
    assert {name for name in reduced & three if ".reduce." in name} == set()
    assert not names({"kind": "fpn"}) & plain
    assert not names({"kind": "bifpn"}) & (plain | reduced | three | names({"kind": "fpn"}))


def test_pan__plain_names_are_those_of_stored_supernets(build: Build) -> None:
    names = {name for name, _ in neck(build({"upsample": "transposed"})).named_parameters()}
    assert {
        "top_down.P4.upsample.conv.weight",
        "top_down.P4.block.qarepvgg_csp.conv1.conv.weight",
        "bottom_up.P5.down.conv.conv.weight",
        "bottom_up.P5.block.qarepvgg_csp.conv3.last.conv.weight",
        "attention.P4.query.weight",
    } <= names
