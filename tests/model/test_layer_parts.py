"""The layer list tells of the network that is really built: its parameters, and its shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from nas.model.detector import Detector
from nas.space.architecture import Architecture
from nas.space.layers import Layer, layers
from nas.space.ultralytics import from_ultralytics, to_ultralytics

_REDUCED = {"reduce": True, "three_inputs": True, "halve": True, "upsample": "transposed"}
_ATTENTION: dict[str, Any] = {
    "P3": {"kind": "windowed", "window": 4},
    "P4": {"kind": "sparse", "tokens": 5, "selection": "learned"},
    "P5": {"kind": "psa"},
}
_YOLOV8 = {"channels": 12, "box_channels": 64, "depth": 2, "bins": 16}

NETWORKS: dict[str, dict[str, Any]] = {
    "yolov8": {"attention": {}, "head": _YOLOV8},
    "yolov8, odd maps": {"input": [72, 120], "attention": {}},
    "yolo-nas": {"neck": _REDUCED, "attention": {}, "head": {"channels": 8, "stem": True}},
    "yolo-nas, odd maps": {"input": [72, 120], "neck": _REDUCED, "attention": _ATTENTION},
    "hsv-det": {
        "input": [136, 240],
        "attention": {"P4": {"tokens": 5}, "P5": {"tokens": 5}},
        "pooling": {"hidden": 8},
    },
    "no pooling": {"input": [72, 120], "pooling": None, "attention": _ATTENTION},
    "fpn": {"input": [72, 120], "neck": {"kind": "fpn"}, "attention": _ATTENTION},
    "fpn, transposed": {"neck": {"kind": "fpn", "upsample": "transposed"}, "attention": {}},
    "bifpn": {"input": [72, 120], "neck": {"kind": "bifpn", "repeats": 3}},
    "bifpn, transposed": {
        "neck": {"kind": "bifpn", "upsample": "transposed", "convolution": "repvgg"},
        "attention": _ATTENTION,
    },
    "one-to-one": {"head": {"kind": "one_to_one", "channels": 12}},
}


@pytest.fixture
def network(
    build_architecture: Callable[..., Architecture],
    fusion: Callable[..., dict[str, Any]],
    request: pytest.FixtureRequest,
) -> Architecture:
    """One of NETWORKS; its fusions have widths of their own at every place."""
    fields = dict(NETWORKS[request.param])
    neck = {"top_down": {"P4": fusion(16, 6, 2), "P3": fusion(12, 4)}, **fields.get("neck", {})}
    if neck.get("kind") != "fpn":
        neck["bottom_up"] = {"P4": fusion(18, 8), "P5": fusion(24, 8, block="c2f")}
    return build_architecture(**{**fields, "neck": neck})


def _modules(detector: Detector, layer: Layer) -> list[nn.Module]:
    return [detector.get_submodule(part) for part in layer.parts]


@pytest.mark.parametrize("network", NETWORKS, indirect=True)
def test_parts__hold_every_parameter_once(network: Architecture) -> None:
    with torch.device("meta"):
        detector = Detector(network)
    held = Counter(
        id(parameter)
        for layer in layers(network)
        for module in _modules(detector, layer)
        for parameter in module.parameters()
    )
    for name, parameter in detector.named_parameters():
        assert held[id(parameter)] == 1, name


@pytest.mark.parametrize("network", NETWORKS, indirect=True)
def test_shapes__are_what_modules_put_out(network: Architecture) -> None:
    detector = Detector(network).eval()
    seen: dict[int, tuple[int, ...]] = {}

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen[id(module)] = tuple(output.shape[1:])

    for module in detector.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        detector(torch.rand(1, 3, *network.input))
    *body, _ = layers(network)
    for layer in body:
        for module in _modules(detector, layer):
            assert (seen[id(module)],) == layer.shapes, layer


@pytest.mark.parametrize("network", NETWORKS, indirect=True)
def test_shapes__of_the_head_are_what_the_neck_puts_out(network: Architecture) -> None:
    detector = Detector(network).eval()
    found: list[tuple[int, ...]] = []

    def note(_module: nn.Module, _inputs: Any, features: list[Tensor]) -> None:
        found.extend(tuple(feature.shape[1:]) for feature in features)

    detector.neck.register_forward_hook(note)
    with torch.no_grad():
        detector(torch.rand(1, 3, *network.input))
    assert layers(network)[-1].shapes == tuple(found)


@pytest.mark.parametrize("network", NETWORKS, indirect=True)
def test_sources__lead_to_the_shapes(network: Architecture) -> None:
    listed = layers(network)
    for layer in listed:
        before = [listed[source].shapes[0] for source in layer.sources if source >= 0]
        if layer.module == "Concat":
            assert layer.shapes[0][0] == sum(channels for channels, *_ in before)
        if layer.module in ("Concat", "WeightedSum"):
            assert {tuple(size) for _, *size in before} == {layer.shapes[0][1:]}


@pytest.mark.parametrize("network", NETWORKS, indirect=True)
def test_ultralytics__gives_the_network_back(network: Architecture) -> None:
    assert from_ultralytics(to_ultralytics(network)).digest == network.digest


def _yolov8_file() -> str:
    """YOLOv8's layers in their users' form: backbone, path aggregation, head."""
    widths, repeats = (128, 256, 512, 1024), (3, 6, 6, 3)
    backbone: list[Any] = [[-1, 1, "Conv", [64, 3, 2]]]
    for width, count in zip(widths, repeats, strict=True):
        backbone += [[-1, 1, "Conv", [width, 3, 2]], [-1, count, "C2f", [width, True]]]
    backbone.append([-1, 1, "SPPF", [1024, 5]])
    head: list[Any] = []
    for source, width in ((6, 512), (4, 256)):
        head += [[-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, source], 1, "Concat", [1]]]
        head.append([-1, 3, "C2f", [width]])
    for source, width in ((12, 512), (9, 1024)):
        head += [[-1, 1, "Conv", [width // 2, 3, 2]], [[-1, source], 1, "Concat", [1]]]
        head.append([-1, 3, "C2f", [width]])
    head.append([[15, 18, 21], 1, "Detect", ["nc"]])
    scales = {"n": [0.33, 0.25, 1024], "s": [0.33, 0.50, 1024], "m": [0.67, 0.75, 768]}
    return yaml.safe_dump({"nc": 80, "scales": scales, "backbone": backbone, "head": head})


@pytest.mark.parametrize(
    ("scale", "published"), [("n", 3_157_200), ("s", 11_166_560), ("m", 25_902_640)]
)
def test_yolov8__from_its_rows_has_the_published_parameters(scale: str, published: int) -> None:
    # See test_published.py: 16 of theirs are fixed.
    with torch.device("meta"):
        detector = Detector(from_ultralytics(_yolov8_file(), scale=scale))
    assert sum(p.numel() for p in detector.parameters()) == published - 16
