"""The networks that are measured, the images that they see, and what torch says of those.

Architectures are written out here and not read from `search_spaces/`: a machine may lack PyYAML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nas.accuracy.dataset import Annotations, ResizedSplit, Split
from nas.accuracy.detections import detect_batch, match_detections
from nas.latency.onnx_export import OUTPUTS
from nas.latency.runtimes.base import Engine, Outputs
from nas.model.detector import Detector
from nas.space.architecture import Architecture

Row = dict[str, Any]

LEVELS = ("P2", "P3", "P4", "P5")
_SEGMENTS = (
    "abcdef",
    "bc",
    "abged",
    "abgcd",
    "fgbc",
    "afgcd",
    "afgedc",
    "abc",
    "abcdefg",
    "abcfgd",
)


def ladder() -> dict[str, Architecture]:
    """Name the networks, in the order of their worth."""
    return {
        "digits": digits(),
        "digits_sparse": digits(sparse=True),
        "yolov8n": yolov8(16),
        "yolo_nas_s": yolo_nas_s(),
        "yolov8s": yolov8(32),
    }


def digits(*, sparse: bool = False) -> Architecture:
    """Build `digits:max`, or the same with the longest sparse attention of that space."""
    tokens = {"P3": 64, "P4": 32, "P5": 8}
    block = {"block": "qarepvgg_csp", "hidden": 16, "depth": 2}
    stages = ((16, 16, 1), (32, 16, 2), (48, 24, 2), (64, 32, 2))
    return Architecture.parse(
        {
            "input": 128,
            "classes": 10,
            "activation": "silu",
            "stem": {"convolution": "qarepvgg", "channels": 16},
            "backbone": _stages("qarepvgg_csp", "qarepvgg", stages),
            "pooling": {"kind": "sppf", "hidden": 32},
            "attention": {
                level: {"kind": "sparse", "tokens": k} if sparse else {"kind": "dense"}
                for level, k in tokens.items()
            },
            "neck": {
                "top_down": {"P4": {**block, "channels": 32}, "P3": {**block, "channels": 32}},
                "bottom_up": {"P4": {**block, "channels": 32}, "P5": {**block, "channels": 48}},
            },
            "head": {"channels": 24, "depth": 1, "bins": 8},
        }
    )


def yolov8(width: int) -> Architecture:
    """Build YOLOv8 n (`width` 16) or s (32), as the space `hsv_det` has them."""
    p2, p3, p4, p5 = (width * factor for factor in (2, 4, 8, 16))
    halved = {
        channels: {
            "block": "c2f",
            "channels": channels,
            "hidden": channels // 2,
            "depth": 1,
            "shortcut": False,
        }
        for channels in (p3, p4, p5)
    }
    stages = ((p2, p2 // 2, 1), (p3, p3 // 2, 2), (p4, p4 // 2, 2), (p5, p5 // 2, 1))
    return Architecture.parse(
        {
            "input": 640,
            "classes": 80,
            "activation": "silu",
            "stem": {"channels": width},
            "backbone": _stages("c2f", "conv", stages),
            "pooling": {"kind": "sppf", "hidden": p5 // 2},
            "neck": {
                "top_down": {"P4": halved[p4], "P3": halved[p3]},
                "bottom_up": {"P4": halved[p4], "P5": halved[p5]},
            },
            "head": {"channels": max(p3, 80), "box_channels": 64, "depth": 2, "bins": 16},
        }
    )


def yolo_nas_s() -> Architecture:
    """Build `yolo_nas:S`."""
    up, down = {"block": "qarepvgg_csp", "depth": 2}, {"block": "conv_csp", "depth": 2}
    stages = ((96, 32, 2), (192, 64, 3), (384, 96, 5), (768, 192, 2))
    return Architecture.parse(
        {
            "input": 640,
            "classes": 80,
            "stem": {"convolution": "qarepvgg", "channels": 48},
            "backbone": _stages("qarepvgg_csp", "qarepvgg", stages),
            "pooling": {"kind": "spp", "hidden": 384, "kernels": [5, 9, 13]},
            "neck": {
                "upsample": "transposed",
                "reduce": True,
                "three_inputs": True,
                "halve": True,
                "top_down": {
                    "P4": {**up, "channels": 192, "hidden": 64},
                    "P3": {**up, "channels": 96, "hidden": 48},
                },
                "bottom_up": {
                    "P4": {**down, "channels": 192, "hidden": 64},
                    "P5": {**down, "channels": 384, "hidden": 64},
                },
            },
            "head": {"channels": [64, 128, 256], "depth": 1, "stem": True, "bins": 17},
        }
    )


def _stages(block: str, convolution: str, rows: Sequence[tuple[int, int, int]]) -> Row:
    """Describe P2..P5 by channels, hidden width and depth."""
    return {
        level: {
            "block": block,
            "convolution": convolution,
            "channels": channels,
            "hidden": hidden,
            "depth": depth,
        }
        for level, (channels, hidden, depth) in zip(LEVELS, rows, strict=True)
    }


@dataclass(frozen=True)
class Rung:
    """A network of the ladder, as the part `networks` left it in the shared folder."""

    name: str
    folder: Path

    @property
    def ready(self) -> bool:
        """Whether all of it is there."""
        return (self.folder / f"{self.name}.rung.json").exists()

    @cached_property
    def about(self) -> Row:
        """What is known of it, its architecture among other things."""
        found: Row = json.loads((self.folder / f"{self.name}.rung.json").read_text())
        return found

    @cached_property
    def known(self) -> dict[str, npt.NDArray[np.float32]]:
        """The images (n, 3, H, W), and the boxes and scores that torch in fp32 on the CPU finds."""
        with np.load(self.folder / f"{self.name}.npz") as file:
            return dict(file)

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, 3, H, W)."""
        return (1, *self.known["images"].shape[1:])

    def graph(self, precision: str) -> bytes:
        """Return what engines of a precision are built from."""
        kind = "int8" if precision == "int8" else "fp32"
        return (self.folder / f"{self.name}.{kind}.onnx").read_bytes()

    def network(self) -> nn.Module:
        """Return the deployed network with its weights."""
        detector = Detector(Architecture.parse(self.about["architecture"]))
        detector.load_state_dict(torch.load(self.folder / f"{self.name}.pt", weights_only=True))
        return detector.deploy()

    def parity(self, engine: Engine, precision: str) -> Row:
        """Compare an engine with torch on the images: boxes, scores and detections."""
        if precision == "int8" and not self.about["calibrated"]:
            return {"parity": "not compared: INT8 is calibrated by ONNX Runtime, which is missing"}
        found = [engine.infer(image[None]) for image in self.known["images"]]
        stacked = {name: np.concatenate([one[name] for one in found]) for name in OUTPUTS}
        figures = deviations(stacked, self.known)
        if self.about["trained"]:
            figures["matched"] = _matched(stacked, self.known, nms=self.about["nms"])
        return figures


def deviations(found: Outputs, expected: Mapping[str, npt.NDArray[np.float32]]) -> Row:
    """Return the largest and the mean deviation, relative to the output's largest magnitude."""
    figures = {}
    for name, values in found.items():
        relative = np.abs(values - expected[name]) / np.abs(expected[name]).max()
        figures[f"{name}_max"], figures[f"{name}_mean"] = relative.max(), relative.mean()
    return figures


def _matched(
    found: Outputs, expected: Mapping[str, npt.NDArray[np.float32]], *, nms: bool
) -> float:
    """Share of detections that both have; NaN if there is none."""
    a, b = (detect_batch(one["boxes"], one["scores"], nms=nms) for one in (found, expected))
    return float(np.minimum(match_detections(a, b), match_detections(b, a)))


def scenes(count: int, size: tuple[int, int], seed: int) -> ResizedSplit:
    """Draw bright seven-segment digits on textured gradients: (count, 3, *size), and boxes."""
    rng, (height, width) = np.random.default_rng(seed), size
    images, objects = np.empty((count, 3, height, width), np.uint8), []
    for image in images:
        canvas = _background(height, width, rng)
        objects.append(_write_digits(canvas, rng))
        image[:] = (canvas + rng.normal(0, 4, canvas.shape)).clip(0, 255)
    # Its copy at the network's size is given to the split, which would resize by Pillow.
    ready: dict[tuple[int, int], ResizedSplit] = {}
    sizes, names = np.tile(np.array(size), (count, 1)), tuple(map(str, range(count)))
    split = Split("train", images, tuple(objects), sizes, names, _resized=ready)
    ready[size] = ResizedSplit(split, images, tuple(objects), np.ones((count, 2), np.float32))
    return ready[size]


def _background(height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    down, right = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    dark, vertical, horizontal = rng.uniform(0, 45, (3, 3, 1, 1))
    coarse = rng.normal(0, 12, (3, -(-height // 8), -(-width // 8)))
    texture = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    filled: npt.NDArray[np.float64] = dark + vertical * down + horizontal * right + texture
    return filled


def _write_digits(canvas: npt.NDArray[np.float64], rng: np.random.Generator) -> Annotations:
    """Write two to four digits into the quarters of a canvas (3, H, W)."""
    _, height, width = canvas.shape
    labels, boxes = rng.integers(10, size=rng.integers(2, 5)), []
    for quarter, label in zip(rng.permutation(4), labels, strict=False):
        tall = int(height * rng.uniform(0.28, 0.42))
        wide, pen = tall * 5 // 8, max(tall // 7, 2)
        top = int(quarter // 2 * height / 2 + rng.uniform(0.02, 0.06) * height)
        left = int(quarter % 2 * width / 2 + rng.uniform(0.02, 0.1) * width)
        bottom, right, middle = top + tall, left + wide, top + tall // 2
        strokes = {
            "a": (top, top + pen, left, right),
            "b": (top, middle, right - pen, right),
            "c": (middle, bottom, right - pen, right),
            "d": (bottom - pen, bottom, left, right),
            "e": (middle, bottom, left, left + pen),
            "f": (top, middle, left, left + pen),
            "g": (middle - pen // 2, middle - pen // 2 + pen, left, right),
        }
        ink = rng.uniform(170, 255, (3, 1, 1))
        for y, y_end, x, x_end in (strokes[one] for one in _SEGMENTS[label]):
            canvas[:, y:y_end, x:x_end] = ink
        boxes.append((right - pen if label == 1 else left, top, right, bottom))
    return Annotations(np.array(boxes, np.float32), labels)
