"""Published networks are anchors of the shipped spaces, with the published parameters and MACs.

YOLOv8 n, s, m, l, x with 80 classes at 640 px (ultralytics 8.x, `model.info()`, and its docs): our
parameters lack the 16 fixed weights of the expectation; GFLOPs are 2 x MACs of the fused network.

YOLO-NAS S, M, L: 19.05 / 51.18 / 66.98 M (super-gradients 3.x), whose units hold the deployed 3x3
kernel beside the branches, and a bias in the 1x1 branch; `_as_counted_there` adds these. Deci
published no FLOPs (super-gradients issue 1246). CondadosAI/modern-yolonas, a reimplementation with
bit-identical scores, counted 33.9 / 94.2 / 129.0 GFLOPs at 640 px by torch's counter, unfused. The
fused S has 12.2 M parameters (Qualcomm AI Hub, Yolo-NAS).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nas.model.blocks.convolution import QARepVGG
from nas.model.detector import Detector, profile
from nas.space.architecture import Architecture
from nas.space.space import load_space

YOLOV8 = {
    "yolov8n": (3_157_200, 3_151_904, 8.7),
    "yolov8s": (11_166_560, 11_156_544, 28.6),
    "yolov8m": (25_902_640, 25_886_080, 78.9),
    "yolov8l": (43_691_520, 43_668_288, 165.2),
    "yolov8x": (68_229_648, 68_200_608, 257.8),
}
YOLO_NAS = {"S": (19.05, 33.9), "M": (51.18, 94.2), "L": (66.98, 129.0)}


def _anchor(space: str, name: str) -> Architecture:
    found = load_space(space)
    return found.candidate(found.anchors[name], 80).architecture


def _weightless(architecture: Architecture) -> Detector:
    with torch.device("meta"):
        return Detector(architecture).to("meta")


def _parameters(detector: Detector) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())


def _as_counted_there(detector: Detector) -> int:
    kernels = 0
    for unit in detector.modules():
        if isinstance(unit, QARepVGG):
            kernels += unit.conv.weight.numel() + 2 * unit.out_channels
    return _parameters(detector) + kernels


def _unfused_macs(architecture: Architecture) -> int:
    """Count the 1x1 branches that folding removes, beside what is deployed."""
    detector, branches = _weightless(architecture), 0

    def count(unit: QARepVGG, _images: object, output: torch.Tensor) -> None:
        nonlocal branches
        inputs = unit.conv.weight.shape[1]
        branches += output.numel() * inputs

    for unit in detector.modules():
        if isinstance(unit, QARepVGG):
            unit.register_forward_hook(count)
    with torch.no_grad():
        detector(torch.empty(1, 3, *architecture.input, device="meta"))
    return profile(architecture).macs + branches


@pytest.mark.parametrize("name", YOLOV8)
def test_yolov8__exact_parameters_and_published_macs(name: str) -> None:
    trained, fused, gflops = YOLOV8[name]
    architecture = _anchor("hsv_det", name)
    assert _parameters(_weightless(architecture)) == trained - 16
    assert profile(architecture).parameters == fused - 16
    assert 2e-9 * profile(architecture).macs == pytest.approx(gflops, abs=0.06)


def test_hsv_det__is_yolov8l_with_attention_at_two_levels() -> None:
    """By hand: at 512 channels, four 1x1 projections, a layer normalisation and a gate each."""
    architecture = _anchor("hsv_det", "hsv_det")
    plain = architecture.model_copy(update={"attention": type(architecture.attention)()})
    block = 4 * 512**2 + 2 * 512 + 1
    added = _parameters(_weightless(architecture)) - _parameters(_weightless(plain))
    assert added == 2 * block
    assert plain.at_input((640, 640)) == _anchor("hsv_det", "yolov8l")
    assert architecture.tokens_at("P5") == 2040
    assert architecture.tokens_at("P4") == 8160


@pytest.mark.parametrize("name", YOLO_NAS)
def test_yolo_nas__published_parameters_and_macs(name: str) -> None:
    millions, gflops = YOLO_NAS[name]
    architecture = _anchor("yolo_nas", name)
    counted = _as_counted_there(_weightless(architecture)) / 1e6
    assert counted == pytest.approx(millions, abs=0.006)
    assert 2e-9 * _unfused_macs(architecture) == pytest.approx(gflops, abs=0.06)


def test_yolo_nas_s__deployed_parameters() -> None:
    assert profile(_anchor("yolo_nas", "S")).parameters / 1e6 == pytest.approx(12.2, abs=0.06)


def test_yolo_nas_s__fused_equals_unfused(randomize: Callable[..., None]) -> None:
    detector = Detector(_anchor("yolo_nas", "S").at_input((128, 128)))
    randomize(detector)
    detector.eval()
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, bins = detector.head(detector.neck(detector.backbone(images)))
        deployed = detector.deploy()
        fused = deployed.head(deployed.neck(deployed.backbone(images)))
    for ours, theirs in zip((logits, bins), fused, strict=True):
        assert torch.isfinite(ours).all()
        assert (ours - theirs).abs().max() < 1e-4 * ours.abs().max()
