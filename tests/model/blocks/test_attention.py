"""What every family, selection and gate must do, and how they sit in networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from processor import needs_bf16
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import ArchitectureError
from nas.latency.onnx_export import check_onnx, export_graph, export_onnx
from nas.latency.runtimes.base import Runtime
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.model.blocks.attention import Attention, attention_at, build_attention
from nas.model.blocks.layers import Choice, Scale
from nas.model.detector import Detector, profile
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture
from nas.space.attention import LARGEST_TOPK, AttentionPoint

Build = Callable[..., Architecture]

POINTS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    **{
        f"sparse, {selection}": {"tokens": 13, "selection": selection}
        for selection in ("squared_l2", "l2", "learned", "random", "strided")
    },
    "aifi": {"kind": "aifi"},
    "psa": {"kind": "psa"},
    "windowed": {"kind": "windowed", "window": 4},
    "strided": {"kind": "strided", "stride": 3},
    "lsh": {"kind": "lsh", "buckets": 5},
    "deformable": {"kind": "deformable", "points": 3},
}
GATES = ("learned", "fixed", "none")
SIZES = ((17, 30), (8, 8))
DYNAMIC = {"Shape", "Range", "NonZero", "Where", "Loop", "If", "Expand"}

every_family = pytest.mark.parametrize("name", POINTS)
# In a network, ways to select differ in whether they have a score or a constant.
in_networks = pytest.mark.parametrize(
    "name", [name for name in POINTS if name not in ("dense", "sparse, l2", "sparse, strided")]
)


class _OnImages(nn.Module):
    """An image, a 1x1 convolution, the block: what runtimes take."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 1)
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.block(self.stem(images))
        return output


@pytest.fixture
def build(randomize: Callable[..., None]) -> Callable[..., Attention]:
    """A family by its name, with 20 channels and weights that hide nothing."""

    def make(name: str, size: tuple[int, int] = (17, 30), **fields: Any) -> Attention:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(3)
            block = build_attention(AttentionPoint(**POINTS[name], **fields), 20, size)
            randomize(block)
            for parameter in block.parameters():
                if parameter.dim() == 4 and not parameter.any():
                    nn.init.normal_(parameter)
        return block

    return make


def _features(batch: int = 2, size: tuple[int, int] = (17, 30)) -> Tensor:
    return torch.randn(batch, 20, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "gate"),
    [(name, GATES[place % 3]) for place, name in enumerate(POINTS)]
    + [("sparse, learned", gate) for gate in GATES]
    + [("psa", gate) for gate in GATES],
)
def test_gate__weighs_what_is_added(name: str, gate: str, build: Callable[..., Attention]) -> None:
    block = build(name, gate=gate).eval()
    x = _features()
    if isinstance(block.gate, Scale):
        fresh = build_attention(AttentionPoint(**POINTS[name]), 20, (17, 30))
        assert torch.equal(fresh.eval()(x), x)
    factor = {"learned": getattr(block.gate, "factor", 0.0), "fixed": 0.5, "none": 1.0}[gate]
    torch.testing.assert_close(block(x), x + factor * block.update(x), rtol=1e-4, atol=1e-5)
    assert block.update(x).abs().max() > 0.1


@every_family
def test_attention__treats_images_of_a_batch_apart(
    name: str, build: Callable[..., Attention]
) -> None:
    block, x = build(name).eval(), _features(3)
    alone = torch.cat([block(image) for image in x.split(1)])
    torch.testing.assert_close(block(x), alone, rtol=1e-4, atol=1e-5)


@every_family
@pytest.mark.parametrize("size", [(9, 7), (8, 8)])
def test_macs__are_the_counted_ones(
    name: str, size: tuple[int, int], build: Callable[..., Attention]
) -> None:
    block = build(name, size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(_features(1, size))
    # Sampling multiplies four neighbours of each point by weights, in no matrix product.
    sampled = 4 * 3 * size[0] * size[1] * 20 if name == "deformable" else 0
    assert block.macs == counter.get_total_flops() / 2 + sampled
    assert 0 < block.mixing_macs < block.macs


@every_family
def test_attention__autocast_stays_finite_and_close(
    name: str, build: Callable[..., Attention]
) -> None:
    block, x = build(name).train(), 10 * _features()
    with torch.autocast("cpu", torch.bfloat16):
        low = block(x)
        low.float().square().mean().backward()
    assert low.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    # Rounding moves hashes and learned selections: single positions may differ by much.
    assert (low.float() - block(x)).abs().median() < 0.1


@every_family
def test_attention__every_weight_learns(name: str, build: Callable[..., Attention]) -> None:
    block = build(name).train()
    (block(_features()) * torch.randn(2, 20, 17, 30)).sum().backward()
    for path, parameter in block.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.abs().sum() > 0, path


@every_family
@pytest.mark.parametrize("size", SIZES)
def test_export__engines_agree_and_shapes_are_static(
    name: str, size: tuple[int, int], build: Callable[..., Attention]
) -> None:
    network = _OnImages(build(name, size)).eval()
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(4))
    graph = export_graph(network, images, "images", ["features"])
    expected = network(images).detach().numpy()
    runtimes: list[Runtime] = [OnnxRuntime(), OpenVinoRuntime()]
    for runtime in runtimes:
        with runtime.build(graph, "fp32") as engine:
            found = engine.infer(images.numpy())["features"]
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), runtime.name
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    operators = {node.op_type for node in model.graph.node}
    assert operators.isdisjoint(DYNAMIC | {"GridSample"})
    assert all(1 <= k <= LARGEST_TOPK for k in _topk_sizes(model.graph))


@needs_bf16
@in_networks
def test_export__half_precision_looks_at_the_same_places(
    name: str, build: Callable[..., Attention]
) -> None:
    network = _OnImages(build(name, (17, 46))).eval()
    images = torch.rand(1, 3, 17, 46, generator=torch.Generator().manual_seed(4))
    graph = export_graph(network, images, "images", ["features"])
    expected = network(images).detach().numpy()
    with OpenVinoRuntime().build(graph, "bf16") as engine:
        found = engine.infer(images.numpy())["features"]
    # Positions or indices that are rounded to 8 bits would read values of other places: 0.1 to 0.3.
    assert np.sqrt(np.square(found - expected).mean() / expected.var()) < 0.05


def _topk_sizes(graph: onnx.GraphProto) -> list[int]:
    """K of every TopK; each must be a constant of the graph."""
    constants = {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant"
    }
    constants |= {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    reshaped = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Reshape"}
    nodes = [node for node in graph.node if node.op_type == "TopK"]
    return [int(constants[reshaped.get(node.input[1], node.input[1])].item()) for node in nodes]


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ({"kind": "dense"}, None),
        ({"tokens": 3, "selection": "random"}, None),
        ({"kind": "dense", "gate": "fixed"}, "sparse_fixed"),
        ({"tokens": 3, "gate": "none"}, "sparse_none"),
        ({"kind": "windowed", "window": 3}, "windowed"),
        ({"kind": "psa", "gate": "none"}, "psa_none"),
    ],
    ids=str,
)
def test_attention_at__names_the_weights_by_their_type(
    point: dict[str, Any], name: str | None
) -> None:
    module = attention_at("P5", AttentionPoint(**point), 8, (4, 5))
    assert isinstance(module, Attention if name is None else Choice)
    assert all(path.startswith(f"{name}.") for path, _ in module.named_parameters() if name)
    assert name is not None or "query.weight" in dict(module.named_parameters())


def test_attention_at__what_does_not_go_with_the_map() -> None:
    with pytest.raises(ArchitectureError, match="got 21"):
        attention_at("P5", AttentionPoint(tokens=21), 8, (4, 5))
    with pytest.raises(ArchitectureError, match="has 20"):
        attention_at("P5", AttentionPoint(kind="lsh", buckets=21), 8, (4, 5))
    with pytest.raises(ArchitectureError, match="at least 2, got 1"):
        attention_at("P5", AttentionPoint(kind="psa"), 1, (4, 5))


# --- in networks -----------------------------------------------------------------------------

SMALL = {**POINTS, "lsh": {"kind": "lsh", "buckets": 3}}


def _network(build_architecture: Build, name: str, **fields: Any) -> Architecture:
    point = {**SMALL[name], **fields}
    return build_architecture(attention={"P4": point, "P3": {**point, "gate": "fixed"}})


def _images(architecture: Architecture, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, *architecture.input, generator=generator)


@in_networks
def test_detector__profiles_deploys_and_exports(
    name: str, build_architecture: Build, randomize: Callable[..., None]
) -> None:
    architecture = _network(build_architecture, name)
    detector = Detector(architecture).eval()
    randomize(detector)
    deployed, images = detector.deploy(), _images(architecture, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(images)
    counted = profile(architecture)
    sampled = 4 * 3 * (24 * 16 + 96 * 12) if name == "deformable" else 0
    assert counted.parameters == sum(p.numel() for p in deployed.parameters())
    assert counted.macs == counter.get_total_flops() / 2 + sampled
    torch.testing.assert_close(
        deployed(images)[1], detector(images).logits.sigmoid(), rtol=0, atol=1e-4
    )
    assert not any("BatchNorm" in type(module).__name__ for module in deployed.modules())
    check_onnx(export_onnx(deployed, *architecture.input), deployed, images.numpy())


@in_networks
def test_supernet__activates_what_it_extracts(name: str, build_architecture: Build) -> None:
    largest = _network(build_architecture, name)
    data = copy.deepcopy(largest.model_dump())
    data["neck"]["top_down"]["P4"]["channels"] = 11
    data["neck"]["top_down"]["P3"]["channels"] = 7
    for point in (data["attention"]["P4"], data["attention"]["P3"]):
        for field in ("tokens", "window", "buckets", "points"):
            point[field] = point[field] and point[field] - 1
    narrow = Architecture.parse(data)
    supernet = Supernet([largest, narrow])
    for training in (True, False):
        supernet.train(training)
        for architecture in (largest, narrow):
            images = _images(architecture)
            first = supernet.activate(architecture)(images)
            second = supernet.extract(architecture)(images)
            assert torch.equal(first.logits, second.logits)
            assert torch.equal(first.bins, second.bins)


def test_supernet__has_weights_for_each_family_and_shares_sizes(build_architecture: Build) -> None:
    points = [*SMALL.values(), {"kind": "windowed", "window": 7}]
    networks = [build_architecture(attention={"P4": point}) for point in points]
    supernet = Supernet(networks)
    own = [{n for n, _ in Detector(one).named_parameters() if "attention" in n} for one in networks]
    families = dict(zip(SMALL, own, strict=False))
    for name in ("aifi", "psa", "windowed", "strided", "lsh", "deformable"):
        others = set().union(*(names for other, names in families.items() if other != name))
        assert families[name].isdisjoint(others), name
    assert families["windowed"] == own[-1]
    assert families["dense"] == families["sparse, random"] < families["sparse, learned"]
    for one in networks:
        supernet.activate(one)(_images(one))


def test_supernet__starts_deformable_attention_on_its_circle(build_architecture: Build) -> None:
    largest = _network(build_architecture, "deformable")
    supernet = Supernet([largest])
    bias = supernet.shared["neck/attention/P4/deformable/offsets/bias"]
    torch.testing.assert_close(bias.reshape(-1, 2).norm(dim=1), torch.full((3,), 2.0))
    assert not supernet.shared["neck/attention/P4/deformable/offsets/weight"].any()
