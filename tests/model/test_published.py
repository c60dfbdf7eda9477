"""Published networks, written as architectures, have the published numbers of parameters.

YOLOv8: 3,157,200 / 11,166,560 / 25,902,640 with 80 classes (ultralytics 8.x, `model.info()`); 16 of
them are the fixed weights of the expectation, which are no parameters here. YOLO-NAS: 19.05 / 51.18
/ 66.98 M (super-gradients 3.x), whose units hold the deployed 3x3 kernel beside the branches and a
bias in the 1x1 branch; `_as_counted_there` adds these.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nas.model.blocks.convolution import QARepVGG
from nas.model.detector import Detector, profile
from nas.space.architecture import Architecture


def _yolov8(depth: float, width: float, largest: int) -> Architecture:
    def c2f(channels: int, repeats: int, shortcut: bool) -> dict[str, Any]:
        out = math.ceil(min(channels, largest) * width / 8) * 8
        rounds = max(round(repeats * depth), 1)
        sizes = {"channels": out, "hidden": out // 2, "depth": rounds}
        return {"block": "c2f", "shortcut": shortcut, **sizes}

    stages = {f"P{i}": c2f(64 * 2 ** (i - 1), 6 if i in (3, 4) else 3, True) for i in range(2, 6)}
    finest = stages["P3"]["channels"]
    return Architecture.parse(
        {
            "input": 640,
            "classes": 80,
            "activation": "silu",
            "stem": {"channels": math.ceil(64 * width / 8) * 8},
            "backbone": stages,
            "pooling": {"hidden": stages["P5"]["channels"] // 2},
            "neck": {
                "top_down": {"P4": c2f(512, 3, False), "P3": c2f(256, 3, False)},
                "bottom_up": {"P4": c2f(512, 3, False), "P5": c2f(1024, 3, False)},
            },
            "head": {
                "channels": max(finest, 80),
                "box_channels": max(16, finest // 4, 64),
                "depth": 2,
                "bins": 16,
            },
        }
    )


def _yolo_nas(
    stages: tuple[int, ...], concat: str, neck: tuple[tuple[int, int], ...], head: tuple[int, ...]
) -> Architecture:
    outputs, depths = (96, 192, 384, 768), (2, 3, 5, 2)
    backbone = {
        f"P{i + 2}": {
            "block": "qarepvgg_csp",
            "convolution": "qarepvgg",
            "channels": outputs[i],
            "hidden": stages[i],
            "depth": depths[i],
            "concat_intermediates": concat[i] == "T",
        }
        for i in range(4)
    }
    blocks = ("qarepvgg_csp", "qarepvgg_csp", "conv_csp", "conv_csp")
    up4, up3, down4, down5 = (
        {"block": block, "channels": channels, "hidden": hidden, "depth": depth}
        for block, channels, (depth, hidden) in zip(blocks, (192, 96, 192, 384), neck, strict=True)
    )
    path = {"top_down": {"P4": up4, "P3": up3}, "bottom_up": {"P4": down4, "P5": down5}}
    style = {"upsample": "transposed", "reduce": True, "three_inputs": True, "halve": True}
    return Architecture.parse(
        {
            "input": 640,
            "classes": 80,
            "stem": {"convolution": "qarepvgg", "channels": 48},
            "backbone": backbone,
            "pooling": {"kind": "spp", "hidden": 384, "kernels": [5, 9, 13]},
            "neck": style | path,
            "head": {"channels": head, "stem": True, "bins": 17},
        }
    )


def _as_counted_there(detector: Detector) -> int:
    total = sum(p.numel() for p in detector.parameters())
    for unit in detector.modules():
        if isinstance(unit, QARepVGG):
            total += unit.conv.weight.numel() + 2 * unit.out_channels
    return total


@pytest.mark.parametrize(
    ("scales", "trained", "fused"),
    [
        ((0.33, 0.25, 1024), 3_157_200, 3_151_904),
        ((0.33, 0.50, 1024), 11_166_560, 11_156_544),
        ((0.67, 0.75, 768), 25_902_640, 25_886_080),
    ],
    ids=["n", "s", "m"],
)
def test_yolov8__exactly(scales: tuple[float, float, int], trained: int, fused: int) -> None:
    architecture = _yolov8(*scales)
    with torch.device("meta"):
        detector = Detector(architecture)
    assert sum(p.numel() for p in detector.parameters()) == trained - 16
    assert profile(architecture).parameters == fused - 16


def test_yolov8n__macs() -> None:
    assert 2e-9 * profile(_yolov8(0.33, 0.25, 1024)).macs == pytest.approx(8.7, abs=0.06)


S = ((32, 64, 96, 192), "FFFF", ((2, 64), (2, 48), (2, 64), (2, 64)), (64, 128, 256))
M = ((64, 128, 256, 384), "TTTF", ((2, 192), (3, 64), (2, 192), (3, 256)), (96, 192, 384))
L = ((96, 128, 256, 512), "TTTT", ((4, 128), (4, 128), (4, 128), (4, 256)), (128, 256, 512))


@pytest.mark.parametrize(
    ("size", "millions"), [(S, 19.05), (M, 51.18), (L, 66.98)], ids=["S", "M", "L"]
)
def test_yolo_nas__to_the_published_digits(size: Any, millions: float) -> None:
    with torch.device("meta"):
        detector = Detector(_yolo_nas(*size))
    assert _as_counted_there(detector) / 1e6 == pytest.approx(millions, abs=0.006)
