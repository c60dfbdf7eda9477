"""An architecture as the flat list of layers that YOLO users know.

Each layer names what it takes from: earlier layers, or the image. The list is derived from the
architecture, which stays the source of truth; it is what `nas describe` prints and draws, and what
`nas.space.ultralytics` writes and reads.

Modules and their arguments, c being the channels that they put out:

========================================== ===================================================
Conv, QARepVGG, RepVGG                     c, kernel, stride (the padding of a 6x6 kernel; and where
                                           nothing is activated padding 0, groups 1, dilation 1,
                                           False)
C2f                                        c, shortcut (groups 1, hidden / c where it is not 1/2)
QARepVGGCSP, RepVGGCSP, ConvCSP, plug-ins  c, hidden, shortcut, concat_intermediates
SPPF, SPP                                  c, kernel or kernels (hidden where it is not c/2)
SparseGlobalBlockGated                     c, tokens: squared L2 norm, learned gate
SparseGlobalBlock                          c, tokens, selection, gate
DenseGlobalBlock, AIFI, PSA                c, gate
WindowedAttention, StridedAttention        c, window or stride, gate
LSHAttention, DeformableAttention          c, buckets or points, gate
nn.Upsample                                None, 2, nearest; cropped where the level's size is odd
nn.ConvTranspose2d                         c, 2, 2; cropped likewise
Concat, WeightedSum                        the dimension 1; nothing
Detect, OneToOneDetect                     classes (and the head's fields where they are not the
                                           ones that YOLOv8 derives from its input)
========================================== ===================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nas.space.architecture import Architecture, Fusion, Pooling, Stage
from nas.space.attention import AttentionPoint
from nas.space.record import LEVELS, Level

__all__ = [
    "ATTENTION",
    "BLOCKS",
    "CONVOLUTIONS",
    "HEADS",
    "IMAGE",
    "TRANSPOSED",
    "UPSAMPLE",
    "Layer",
    "layers",
    "yolov8_head",
]

IMAGE = -1
"""Source of the first layer: the network's input, (3, H, W)."""

CONVOLUTIONS: Mapping[str, str] = MappingProxyType(
    {"conv": "Conv", "qarepvgg": "QARepVGG", "repvgg": "RepVGG"}
)
"""Convolution -> module."""

BLOCKS: Mapping[str, str] = MappingProxyType(
    {
        "c2f": "C2f",
        "qarepvgg_csp": "QARepVGGCSP",
        "repvgg_csp": "RepVGGCSP",
        "conv_csp": "ConvCSP",
    }
)
"""Block -> module; the blocks of other distributions keep their plug-in's name."""

ATTENTION: Mapping[str, tuple[str, str | None]] = MappingProxyType(
    {
        "dense": ("DenseGlobalBlock", None),
        "aifi": ("AIFI", None),
        "psa": ("PSA", None),
        "windowed": ("WindowedAttention", "window"),
        "strided": ("StridedAttention", "stride"),
        "lsh": ("LSHAttention", "buckets"),
        "deformable": ("DeformableAttention", "points"),
    }
)
"""Family, other than `sparse` -> module, and the field that comes before the gate."""

HEADS: Mapping[str, str] = MappingProxyType({"decoupled": "Detect", "one_to_one": "OneToOneDetect"})
"""Kind of head -> module."""

UPSAMPLE, TRANSPOSED = "nn.Upsample", "nn.ConvTranspose2d"
_HEAD_FIELDS = ("channels", "box_channels", "depth", "stem", "bins")
_ABOVE = {"P3": "P4", "P4": "P5"}
_BELOW = {"P3": "P2", "P4": "P3"}


@dataclass(frozen=True)
class Layer:
    """One row of the list.

    Attributes:
        index: its place, from 0.
        sources: indices of the layers that it takes, in order; `IMAGE` for the input.
        repeats: bottlenecks of a fusion (its depth); 1 for anything else.
        module: its type, such as `Conv`, `C2f`, `QARepVGGCSP`, `Concat`, `Detect`.
        arguments: what the type needs to know beside its inputs, in the order of its constructor.
        shapes: (C, H, W) of what it puts out; three of them (P3, P4, P5 as it sees them) for the
            head.
        parts: dotted names of the modules of a `nas.model.detector.Detector` that this layer stands
            for; none for a `Concat`.
        role: what it is, for a person: `stem`, `P4 features`, `top-down P4`, `attention at P5`.
    """

    index: int
    sources: tuple[int, ...]
    repeats: int
    module: str
    arguments: tuple[Any, ...]
    shapes: tuple[tuple[int, int, int], ...]
    parts: tuple[str, ...]
    role: str


def layers(architecture: Architecture) -> tuple[Layer, ...]:
    """List the layers of a network, in an order in which they can run."""
    rows = _Rows(architecture)
    outputs = _neck(rows, _backbone(rows))
    module, arguments = _head(architecture)
    shapes = tuple(rows.found[index].shapes[0] for index in outputs)
    rows.add(outputs, module, arguments, shapes, "head", "head")
    return tuple(rows.found)


def yolov8_head(channels: int, classes: int) -> dict[str, Any]:
    """Return the fields of the head that YOLOv8 puts behind a P3 of so many channels.

    Class branches are as wide as P3, or as the classes up to 100 if that is more; box branches a
    quarter as wide as P3, at least 16 and at least the four distributions of 16 bins.
    """
    return {
        "channels": (max(channels, min(classes, 100)),) * 3,
        "box_channels": (max(16, channels // 4, 64),) * 3,
        "depth": 2,
        "stem": False,
        "bins": 16,
    }


class _Rows:
    """The list as it grows; every method returns the index of what it added last."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.found: list[Layer] = []

    def add(
        self,
        sources: tuple[int, ...],
        module: str,
        arguments: tuple[Any, ...],
        shapes: tuple[tuple[int, int, int], ...],
        role: str,
        part: str = "",
        repeats: int = 1,
    ) -> int:
        index, parts = len(self.found), (part,) if part else ()
        layer = Layer(index, sources, repeats, module, arguments, shapes, parts, role)
        self.found.append(layer)
        return index

    def shape(self, channels: int, level: str) -> tuple[tuple[int, int, int]]:
        return ((channels, *self.architecture.feature_size(level)),)

    def channels(self, index: int) -> int:
        return self.found[index].shapes[0][0]

    def convolution(
        self, source: int, kind: str, size: tuple[int, int, int], level: str, role: str, part: str
    ) -> int:
        """Add a unit of `size`: channels, kernel, stride."""
        # Half the kernel is what other readers of the list would pad; 6x6 needs one less.
        arguments = size if size[1] % 2 else (*size, 2)
        shape = self.shape(size[0], level)
        return self.add((source,), CONVOLUTIONS[kind], arguments, shape, role, part)

    def reduction(self, source: int, channels: int, level: str, role: str, part: str) -> int:
        return self.convolution(source, "conv", (channels, 1, 1), level, role, part)

    def projection(self, source: int, channels: int, level: str, part: str) -> int:
        """Add a 1x1 convolution without activation."""
        shape, arguments = self.shape(channels, level), (channels, 1, 1, 0, 1, 1, False)
        return self.add((source,), "Conv", arguments, shape, f"{level} projected", part)

    def fusion(self, source: int, spec: Fusion, level: str, role: str, part: str) -> int:
        module, arguments = _fusion(spec)
        shape = self.shape(spec.channels, level)
        return self.add((source,), module, arguments, shape, role, part, spec.depth)

    def attention(self, source: int, level: Level) -> int:
        point: AttentionPoint | None = getattr(self.architecture.attention, level)
        if point is None:
            return source
        channels = self.channels(source)
        module, arguments = _attention(channels, point)
        shape, role = self.shape(channels, level), f"attention at {level}"
        return self.add((source,), module, arguments, shape, role, f"neck.attention.{level}")

    def upsample(self, source: int, level: str, role: str, part: str) -> int:
        transposed = self.architecture.neck.upsample == "transposed"
        channels = self.channels(source)
        module, arguments = (
            (TRANSPOSED, (channels, 2, 2)) if transposed else (UPSAMPLE, (None, 2, "nearest"))
        )
        return self.add((source,), module, arguments, self.shape(channels, level), role, part)

    def concat(self, sources: tuple[int, ...], level: str, role: str) -> int:
        channels = sum(self.channels(source) for source in sources)
        return self.add(sources, "Concat", (1,), self.shape(channels, level), role)


def _backbone(rows: _Rows) -> dict[str, int]:
    """Add stem, stages and pooling; return where P2..P5 come out."""
    stem = rows.architecture.stem
    size = stem.channels, stem.kernel, 2
    at = rows.convolution(IMAGE, stem.convolution, size, "P1", "stem", "backbone.stem")
    features = {}
    for level in ("P2", "P3", "P4", "P5"):
        spec: Stage = getattr(rows.architecture.backbone, level)
        part, size = f"backbone.{level}", (spec.channels, 3, 2)
        at = rows.convolution(at, spec.convolution, size, level, f"to {level}", f"{part}.down")
        at = rows.fusion(at, spec, level, f"{level} features", f"{part}.block")
        features[level] = at
    pooling = rows.architecture.pooling
    if pooling is not None:
        module, arguments = _pooling(rows.channels(at), pooling)
        shape = rows.shape(rows.channels(at), "P5")
        features["P5"] = rows.add(
            (at,), module, arguments, shape, "pooling at P5", "backbone.pooling"
        )
    return features


def _neck(rows: _Rows, features: dict[str, int]) -> tuple[int, int, int]:
    """Add the neck; return where P3, P4, P5 come out."""
    neck = rows.architecture.neck
    if neck.kind == "bifpn":
        return _weighted_pyramid(rows, features)
    step = _reduced_step if neck.reduce else _plain_step
    p5 = rows.attention(features["P5"], "P5")
    kept5, p4 = step(rows, "P4", p5, features)
    kept4, p3 = step(rows, "P3", rows.attention(p4, "P4"), features)
    p3 = rows.attention(p3, "P3")
    if neck.bottom_up is None:
        return p3, kept4, p5
    p4 = _bottom_up_step(rows, "P4", p3, kept4)
    return p3, p4, _bottom_up_step(rows, "P5", p4, kept5)


def _plain_step(rows: _Rows, level: Level, deep: int, features: dict[str, int]) -> tuple[int, int]:
    """Add upsampling, concatenation and fusion; return what is kept, and the fused feature."""
    spec: Fusion = getattr(rows.architecture.neck.top_down, level)
    part, role = f"neck.top_down.{level}", f"top-down {level}"
    up = rows.upsample(deep, level, f"up to {level}", f"{part}.upsample")
    joined = rows.concat((up, features[level]), level, f"joined at {level}")
    return deep, rows.fusion(joined, spec, level, role, f"{part}.block")


def _reduced_step(
    rows: _Rows, level: Level, deep: int, features: dict[str, int]
) -> tuple[int, int]:
    """Like `_plain_step`, between the 1x1 convolutions of YOLO-NAS."""
    neck = rows.architecture.neck
    spec: Fusion = getattr(neck.top_down, level)
    part, role, width = f"neck.top_down.{level}", f"top-down {level}", spec.channels
    above, below = _ABOVE[level], _BELOW[level]
    kept = rows.reduction(deep, width, above, f"{above} reduced", f"{part}.reduce_deep")
    up = rows.upsample(kept, level, f"up to {level}", f"{part}.upsample")
    skip = rows.reduction(features[level], width, level, f"{level} reduced", f"{part}.reduce_skip")
    sources: tuple[int, ...] = (up, skip)
    if neck.three_inputs:
        lower = rows.reduction(features[below], width, below, f"{below} reduced", f"{part}.lower.0")
        size, name = (width, 3, 2), f"{part}.lower.1"
        down = rows.convolution(lower, neck.convolution, size, level, f"down to {level}", name)
        sources = (up, skip, down)
    joined = rows.concat(sources, level, f"joined at {level}")
    reduced = rows.reduction(joined, width, level, f"{level} joined, reduced", f"{part}.reduce")
    return kept, rows.fusion(reduced, spec, level, role, f"{part}.block")


def _bottom_up_step(rows: _Rows, level: str, fine: int, kept: int) -> int:
    """Add the stride-2 convolution, concatenation and fusion."""
    neck = rows.architecture.neck
    spec: Fusion = getattr(neck.bottom_up, level)
    part, role = f"neck.bottom_up.{level}", f"bottom-up {level}"
    width = max(1, spec.channels // 2) if neck.halve else rows.channels(fine)
    size = width, 3, 2
    down = rows.convolution(fine, neck.convolution, size, level, f"down to {level}", f"{part}.down")
    joined = rows.concat((down, kept), level, f"joined at {level}")
    return rows.fusion(joined, spec, level, role, f"{part}.block")


def _weighted_pyramid(rows: _Rows, features: dict[str, int]) -> tuple[int, int, int]:
    """Add the neck of `nas.model.blocks.neck_bifpn`; return where P3, P4, P5 come out."""
    widths = zip(LEVELS, rows.architecture.neck_channels, strict=True)
    taken = {**features, "P5": rows.attention(features["P5"], "P5")}
    p3, p4, p5 = (
        rows.projection(taken[level], width, level, f"neck.project.{level}")
        for level, width in widths
    )
    for number in range(rows.architecture.neck.repeats):
        attend = rows.attention if number == 0 else _pass_on
        part = f"neck.layers.{number}"
        down, up = f"{part}.top_down", f"{part}.bottom_up"
        top4 = attend(_weighted_node(rows, "P4", down, ("same", p4), ("up", p5)), "P4")
        p3 = attend(_weighted_node(rows, "P3", down, ("same", p3), ("up", top4)), "P3")
        p4 = _weighted_node(rows, "P4", up, ("same", p4), ("same", top4), ("down", p3))
        p5 = _weighted_node(rows, "P5", up, ("same", p5), ("down", p4))
    return p3, p4, p5


def _weighted_node(rows: _Rows, level: str, path: str, *terms: tuple[str, int]) -> int:
    """Add what brings terms to the level and width of a node, their sum, and the fusion."""
    direction = path.rpartition(".")[2]
    spec: Fusion = getattr(getattr(rows.architecture.neck, direction), level)
    part, role = f"{path}.{level}", f"{direction.replace('_', '-')} {level}"
    found = tuple(
        _term(rows, level, spec.channels, way, source, f"{part}.terms.{index}")
        for index, (way, source) in enumerate(terms)
    )
    shape = rows.shape(spec.channels, level)
    total = rows.add(found, "WeightedSum", (), shape, f"summed at {level}", f"{part}.sum")
    return rows.fusion(total, spec, level, role, f"{part}.block")


def _term(rows: _Rows, level: str, width: int, way: str, source: int, part: str) -> int:
    if way == "down":
        kind, size = rows.architecture.neck.convolution, (width, 3, 2)
        return rows.convolution(source, kind, size, level, f"down to {level}", part)
    fits = rows.channels(source) == width
    if way == "same":
        return source if fits else rows.projection(source, width, level, part)
    if not fits:
        source = rows.projection(source, width, _ABOVE[level], f"{part}.0")
    return rows.upsample(source, level, f"up to {level}", f"{part}.1")


def _pass_on(source: int, _level: Level) -> int:
    return source


def _fusion(spec: Fusion) -> tuple[str, tuple[Any, ...]]:
    module = BLOCKS.get(spec.block, spec.block)
    if spec.block != "c2f":
        return module, (spec.channels, spec.hidden, spec.shortcut, spec.concat_intermediates)
    if spec.hidden == spec.channels // 2:
        return module, (spec.channels, spec.shortcut)
    return module, (spec.channels, spec.shortcut, 1, _expansion(spec.hidden, spec.channels))


def _expansion(hidden: int, channels: int) -> float:
    """Return a short e with int(channels * e) == hidden."""
    ratio = hidden / channels
    if len(repr(ratio)) <= 6 and int(channels * ratio) == hidden:
        return ratio
    for digits in range(1, 16):
        rounded = math.ceil(ratio * 10.0**digits) / 10.0**digits
        if int(channels * rounded) == hidden:
            return rounded
    return math.nextafter(ratio, math.inf)


def _pooling(channels: int, spec: Pooling) -> tuple[str, tuple[Any, ...]]:
    sizes = spec.kernels[0] if spec.kind == "sppf" else spec.kernels
    arguments = (channels, sizes)
    return spec.kind.upper(), (
        arguments if spec.hidden == channels // 2 else (*arguments, spec.hidden)
    )


def _attention(channels: int, point: AttentionPoint) -> tuple[str, tuple[Any, ...]]:
    if point.kind != "sparse":
        module, size = ATTENTION[point.kind]
        return module, (channels, *([getattr(point, size)] if size else []), point.gate)
    if (point.selection, point.gate) == ("squared_l2", "learned"):
        return "SparseGlobalBlockGated", (channels, point.tokens)
    return "SparseGlobalBlock", (channels, point.tokens, point.selection, point.gate)


def _head(architecture: Architecture) -> tuple[str, tuple[Any, ...]]:
    head, classes = architecture.head, architecture.classes
    fields = {name: getattr(head, name) for name in _HEAD_FIELDS}
    usual = yolov8_head(architecture.neck_channels[0], classes)
    return HEADS[head.kind], (classes,) if fields == usual else (classes, fields)
