"""The path-aggregation neck (Liu et al., CVPR 2018), in the styles of YOLOv8 and of YOLO-NAS.

Top-down, each step takes the deeper feature up to the size of the level above and fuses it with the
backbone's; bottom-up, each step takes the finer feature down and fuses it with what the top-down
path had at that level. Sizes need not be even: upsampling doubles and crops to the size of the
level, which keeps positions where a stride-2 convolution sees them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.model.blocks.attention import GlobalAttention
from nas.model.blocks.backbone import fusion
from nas.model.blocks.convolution import ConvBN, strided
from nas.model.blocks.layers import Choice, ConvTranspose2d, part
from nas.space.architecture import Architecture, Convolution, Fusion

__all__ = ["PathAggregation"]

_Size = tuple[int, int]


class PathAggregation(nn.Module):
    """Features of the backbone to one feature for each of P3, P4, P5."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        neck, stages, act = architecture.neck, architecture.backbone, architecture.activation
        p2, p3, p4, p5 = (getattr(stages, f"P{i}").channels for i in (2, 3, 4, 5))
        top = neck.top_down
        style = _Style(neck.convolution, neck.upsample, neck.three_inputs, neck.halve, act)
        step: type[_ReducedStep | _PlainStep] = _ReducedStep if neck.reduce else _PlainStep
        size4, size3 = architecture.feature_size("P4"), architecture.feature_size("P3")
        up4 = part("up4", step, style, top.P4, (p5, p4, p3), size4)
        up3 = part("up3", step, style, top.P3, (top.P4.channels, p3, p2), size3)
        self.top_down = nn.ModuleDict({"P4": up4, "P3": up3})
        down = neck.bottom_up
        assert down is not None  # the architecture's rule for this kind
        kept4, kept5 = (top.P3, top.P4) if neck.reduce else (top.P4, stages.P5)
        fine4, fine5 = top.P3.channels, down.P4.channels
        down4 = part("down4", _BottomUpStep, style, down.P4, (fine4, kept4.channels))
        down5 = part("down5", _BottomUpStep, style, down.P5, (fine5, kept5.channels))
        self.bottom_up = nn.ModuleDict({"P4": down4, "P5": down5})
        self.attention = _attention(architecture)

    def forward(self, features: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
        """Map P2, P3, P4, P5 to the neck's P3, P4, P5."""
        p2, p3, p4, p5 = features
        p5 = self._attend("P5", p5)
        kept5, top4 = self.top_down["P4"](p5, p4, p3)
        kept4, top3 = self.top_down["P3"](self._attend("P4", top4), p3, p2)
        out3 = self._attend("P3", top3)
        out4 = self.bottom_up["P4"](out3, kept4)
        return [out3, out4, self.bottom_up["P5"](out4, kept5)]

    def _attend(self, level: str, x: Tensor) -> Tensor:
        return self.attention[level](x) if level in self.attention else x


class _Style(NamedTuple):
    """What all steps of a neck have in common."""

    convolution: Convolution
    upsample: str
    three_inputs: bool
    halve: bool
    act: str


class _PlainStep(nn.Module):
    """Top-down as in YOLOv8: upsample, concatenate, fuse; the deeper feature is kept as it came.

    Args:
        style: of the neck.
        spec: the fusion.
        channels: of the deeper feature, of the backbone's at this level, and at the level below.
        size: height and width at this level.
    """

    def __init__(
        self, style: _Style, spec: Fusion, channels: tuple[int, int, int], size: _Size
    ) -> None:
        super().__init__()
        deep, skip, _ = channels
        self.upsample = _Upsample(style, deep, size)
        self.block = fusion((deep, skip), spec, style.act)

    def forward(self, deep: Tensor, skip: Tensor, _lower: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the bottom-up path meets again, and the fused feature."""
        return deep, self.block(torch.cat([self.upsample(deep), skip], 1))


class _ReducedStep(nn.Module):
    """Top-down as in YOLO-NAS: 1x1 convolutions to the fusion's width around the concatenation.

    With three inputs the backbone's level below joins through a convolution of stride 2. Arguments
    are those of `_PlainStep`.
    """

    def __init__(
        self, style: _Style, spec: Fusion, channels: tuple[int, int, int], size: _Size
    ) -> None:
        super().__init__()
        width, act = spec.channels, style.act
        deep, skip, lower = channels
        self.reduce_deep = ConvBN((deep,), (width,), 1, act=act)
        self.reduce_skip = ConvBN((skip,), (width,), 1, act=act)
        self.upsample = _Upsample(style, width, size)
        self.lower: nn.Sequential | None = None
        if style.three_inputs:
            down = strided(style.convolution, width, width, 3, act)
            reduce = ConvBN((lower,), (width,), 1, act=act)
            self.lower = nn.Sequential(reduce, Choice(style.convolution, down))
        parts = 3 if style.three_inputs else 2
        self.reduce = ConvBN((width,) * parts, (width,), 1, act=act)
        self.block = fusion((width,), spec, act)

    def forward(self, deep: Tensor, skip: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the bottom-up path meets again, and the fused feature."""
        kept = self.reduce_deep(deep)
        parts = [self.upsample(kept), self.reduce_skip(skip)]
        if self.lower is not None:
            parts.append(self.lower(lower))
        return kept, self.block(self.reduce(torch.cat(parts, 1)))


class _BottomUpStep(nn.Module):
    """Stride-2 convolution of the finer feature, concatenation with the kept one, fusion."""

    def __init__(self, style: _Style, spec: Fusion, channels: tuple[int, int]) -> None:
        super().__init__()
        fine, kept = channels
        width = max(1, spec.channels // 2) if style.halve else fine
        down = strided(style.convolution, fine, width, 3, style.act)
        self.down = Choice(style.convolution, down)
        self.block = fusion((width, kept), spec, style.act)

    def forward(self, fine: Tensor, kept: Tensor) -> Tensor:
        output: Tensor = self.block(torch.cat([self.down(fine), kept], 1))
        return output


class _Upsample(nn.Module):
    """Double height and width, then crop to the size that the level has."""

    def __init__(self, style: _Style, channels: int, size: _Size) -> None:
        super().__init__()
        self.size = size
        layout = (channels,)
        self.conv = ConvTranspose2d(layout, layout) if style.upsample == "transposed" else None

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size
        x = F.interpolate(x, scale_factor=2.0) if self.conv is None else self.conv(x)
        return x[:, :, :height, :width] if height % 2 or width % 2 else x


def _attention(architecture: Architecture) -> nn.ModuleDict:
    channels = {
        "P5": architecture.backbone.P5.channels,
        "P4": architecture.neck.top_down.P4.channels,
        "P3": architecture.neck.top_down.P3.channels,
    }
    points = {level: getattr(architecture.attention, level) for level in channels}
    return nn.ModuleDict(
        {
            level: part(
                f"attention.{level}",
                GlobalAttention,
                channels[level],
                point.tokens,
                architecture.feature_size(level),
            )
            for level, point in points.items()
            if point is not None
        }
    )
