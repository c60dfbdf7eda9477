"""The path-aggregation neck (Liu et al., CVPR 2018), in the styles of YOLOv8 and of YOLO-NAS.

Top-down, each step takes the deeper feature up to the size of the level above and fuses it with the
backbone's; bottom-up, each step takes the finer feature down and fuses it with what the top-down
path had at that level. Sizes need not be even: upsampling doubles and crops to the size of the
level, which keeps positions where a stride-2 convolution sees them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.model.blocks.attention import GlobalAttention
from nas.model.blocks.backbone import fusion
from nas.model.blocks.convolution import ConvBN, strided
from nas.model.blocks.layers import Choice, ConvTranspose2d
from nas.space.architecture import Architecture, Fusion, Neck

__all__ = ["PathAggregation"]

_Size = tuple[int, int]


class PathAggregation(nn.Module):
    """Features of the backbone to one feature for each of P3, P4, P5."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        neck, stages, act = architecture.neck, architecture.backbone, architecture.activation
        p2, p3, p4, p5 = (getattr(stages, f"P{i}").channels for i in (2, 3, 4, 5))
        top = neck.top_down
        step = _ReducedStep if neck.reduce else _PlainStep
        up4 = step(neck, top.P4, (p5, p4, p3), architecture.feature_size("P4"), act)
        up3 = step(neck, top.P3, (top.P4.channels, p3, p2), architecture.feature_size("P3"), act)
        self.top_down = nn.ModuleDict({"P4": up4, "P3": up3})
        down4 = _BottomUpStep(neck, neck.bottom_up.P4, (top.P3.channels, up3.kept), act)
        down5 = _BottomUpStep(neck, neck.bottom_up.P5, (down4.out_channels, up4.kept), act)
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


class _PlainStep(nn.Module):
    """Top-down as in YOLOv8: upsample, concatenate, fuse; the deeper feature is kept as it came."""

    def __init__(
        self, neck: Neck, spec: Fusion, channels: tuple[int, int, int], size: _Size, act: str
    ) -> None:
        super().__init__()
        deep, skip, _ = channels
        self.kept = deep
        self.upsample = _Upsample(neck, deep, size)
        self.block = fusion((deep, skip), spec, act)

    def forward(self, deep: Tensor, skip: Tensor, _lower: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the bottom-up path meets again, and the fused feature."""
        return deep, self.block(torch.cat([self.upsample(deep), skip], 1))


class _ReducedStep(nn.Module):
    """Top-down as in YOLO-NAS: 1x1 convolutions to the fusion's width around the concatenation.

    With three inputs the backbone's level below joins through a convolution of stride 2.
    """

    def __init__(
        self, neck: Neck, spec: Fusion, channels: tuple[int, int, int], size: _Size, act: str
    ) -> None:
        super().__init__()
        width = spec.channels
        deep, skip, lower = (ConvBN((c,), (width,), 1, act=act) for c in channels)
        self.kept = width
        self.reduce_deep, self.reduce_skip = deep, skip
        self.upsample = _Upsample(neck, width, size)
        self.lower: nn.Sequential | None = None
        if neck.three_inputs:
            down = strided(neck.convolution, width, width, 3, act)
            self.lower = nn.Sequential(lower, Choice(neck.convolution, down))
        parts = 3 if neck.three_inputs else 2
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

    def __init__(self, neck: Neck, spec: Fusion, channels: tuple[int, int], act: str) -> None:
        super().__init__()
        fine, kept = channels
        width = max(1, spec.channels // 2) if neck.halve else fine
        self.out_channels = spec.channels
        self.down = Choice(neck.convolution, strided(neck.convolution, fine, width, 3, act))
        self.block = fusion((width, kept), spec, act)

    def forward(self, fine: Tensor, kept: Tensor) -> Tensor:
        output: Tensor = self.block(torch.cat([self.down(fine), kept], 1))
        return output


class _Upsample(nn.Module):
    """Double height and width, then crop to the size that the level has."""

    def __init__(self, neck: Neck, channels: int, size: _Size) -> None:
        super().__init__()
        self.size = size
        layout = (channels,)
        self.conv = ConvTranspose2d(layout, layout) if neck.upsample == "transposed" else None

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
            level: GlobalAttention(channels[level], point.tokens, architecture.feature_size(level))
            for level, point in points.items()
            if point is not None
        }
    )
