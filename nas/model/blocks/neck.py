"""Necks by kind: path aggregation and feature pyramid here, the weighted pyramid in `neck_bifpn`.

Path aggregation (Liu et al., CVPR 2018) comes in the styles of YOLOv8 and of YOLO-NAS. Top-down,
each step takes the deeper feature up to the size of the level above and fuses it with the
backbone's; bottom-up, each step takes the finer feature down and fuses it with what the top-down
path had at that level. The feature pyramid (Lin et al., CVPR 2017) ends after the top-down path.

In a supernet, the plain path aggregation has plain names. Where another style or kind takes
something else at the same place, its name is part of the parameters' names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.model.blocks.backbone import fusion
from nas.model.blocks.convolution import ConvBN, strided
from nas.model.blocks.layers import Choice, part
from nas.model.blocks.neck_bifpn import WeightedPyramid
from nas.model.blocks.neck_parts import Features, Neck, Style, Upsample
from nas.space.architecture import Architecture, Fusion
from nas.space.record import Size

__all__ = ["FeaturePyramid", "PathAggregation", "neck"]


def neck(architecture: Architecture) -> Neck:
    """Build the neck of an architecture: the backbone's P2, P3, P4, P5 to the head's P3, P4, P5."""
    kinds = {"pan": PathAggregation, "fpn": FeaturePyramid, "bifpn": WeightedPyramid}
    return kinds[architecture.neck.kind](architecture)


class _TopDownNeck(Neck):
    """The top-down path."""

    def __init__(self, architecture: Architecture, style: Style) -> None:
        super().__init__()
        stages, top = architecture.backbone, architecture.neck.top_down
        p2, p3, p4, p5 = (getattr(stages, f"P{i}").channels for i in (2, 3, 4, 5))
        step: type[_ReducedStep | _PlainStep]
        step = _ReducedStep if architecture.neck.reduce else _PlainStep
        size4, size3 = architecture.feature_size("P4"), architecture.feature_size("P3")
        up4 = part("up4", step, style, top.P4, (p5, p4, p3), size4)
        up3 = part("up3", step, style, top.P3, (top.P4.channels, p3, p2), size3)
        self.top_down = nn.ModuleDict({"P4": up4, "P3": up3})

    def _descend(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the steps kept of P5 and of P4, and the finest feature."""
        p2, p3, p4, p5 = features
        kept5, top4 = self.top_down["P4"](self._attend("P5", p5), p4, p3)
        kept4, top3 = self.top_down["P3"](self._attend("P4", top4), p3, p2)
        return kept5, kept4, self._attend("P3", top3)


class FeaturePyramid(_TopDownNeck):
    """Top-down only: the head gets both fusions, and the backbone's P5 as it is attended to."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture, Style.of(architecture, "fpn"))
        self._add_attention(architecture)

    def forward(self, features: Features) -> list[Tensor]:
        """Map P2, P3, P4, P5 to the neck's P3, P4, P5."""
        kept5, kept4, out3 = self._descend(features)
        return [out3, kept4, kept5]


class PathAggregation(_TopDownNeck):
    """Top-down, then bottom-up."""

    def __init__(self, architecture: Architecture) -> None:
        reduce = architecture.neck.reduce
        style = Style.of(architecture, "reduced" if reduce else "")
        super().__init__(architecture, style)
        top, down = architecture.neck.top_down, architecture.neck.bottom_up
        assert down is not None  # the architecture's rule for this kind
        kept4, kept5 = (top.P3, top.P4) if reduce else (top.P4, architecture.backbone.P5)
        fine4, fine5 = top.P3.channels, down.P4.channels
        down4 = part("down4", _BottomUpStep, style, down.P4, (fine4, kept4.channels))
        down5 = part("down5", _BottomUpStep, style, down.P5, (fine5, kept5.channels))
        self.bottom_up = nn.ModuleDict({"P4": down4, "P5": down5})
        self._add_attention(architecture)

    def forward(self, features: Features) -> list[Tensor]:
        """Map P2, P3, P4, P5 to the neck's P3, P4, P5."""
        kept5, kept4, out3 = self._descend(features)
        out4 = self.bottom_up["P4"](out3, kept4)
        return [out3, out4, self.bottom_up["P5"](out4, kept5)]


class _PlainStep(nn.Module):
    """Top-down as in YOLOv8: upsample, concatenate, fuse; the deeper feature is kept as it came.

    Args:
        style: of the neck.
        spec: the fusion.
        channels: of the deeper feature, of the backbone's at this level, and at the level below.
        size: height and width at this level.
    """

    def __init__(
        self, style: Style, spec: Fusion, channels: tuple[int, int, int], size: Size
    ) -> None:
        super().__init__()
        deep, skip, _ = channels
        self.upsample = style.own(Upsample(style, deep, size))
        self.block = style.own(fusion((deep, skip), spec, style.act))

    def forward(self, deep: Tensor, skip: Tensor, _lower: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the bottom-up path meets again, and the fused feature."""
        return deep, self.block(torch.cat([self.upsample(deep), skip], 1))


class _ReducedStep(nn.Module):
    """Top-down as in YOLO-NAS: 1x1 convolutions to the fusion's width around the concatenation.

    With three inputs the backbone's level below joins through a convolution of stride 2. Arguments
    are those of `_PlainStep`.
    """

    def __init__(
        self, style: Style, spec: Fusion, channels: tuple[int, int, int], size: Size
    ) -> None:
        super().__init__()
        width, act = spec.channels, style.act
        deep, skip, lower = channels
        self.reduce_deep = ConvBN((deep,), (width,), 1, act=act)
        self.reduce_skip = ConvBN((skip,), (width,), 1, act=act)
        self.upsample = style.own(Upsample(style, width, size))
        self.lower: nn.Sequential | None = None
        if style.three_inputs:
            down = strided(style.convolution, width, width, 3, act)
            reduce = ConvBN((lower,), (width,), 1, act=act)
            self.lower = nn.Sequential(reduce, Choice(style.convolution, down))
        name, parts = ("three_inputs", 3) if style.three_inputs else ("two_inputs", 2)
        self.reduce = Choice(name, ConvBN((width,) * parts, (width,), 1, act=act))
        self.block = style.own(fusion((width,), spec, act))

    def forward(self, deep: Tensor, skip: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the bottom-up path meets again, and the fused feature."""
        kept = self.reduce_deep(deep)
        parts = [self.upsample(kept), self.reduce_skip(skip)]
        if self.lower is not None:
            parts.append(self.lower(lower))
        return kept, self.block(self.reduce(torch.cat(parts, 1)))


class _BottomUpStep(nn.Module):
    """Stride-2 convolution of the finer feature, concatenation with the kept one, fusion."""

    def __init__(self, style: Style, spec: Fusion, channels: tuple[int, int]) -> None:
        super().__init__()
        fine, kept = channels
        width = max(1, spec.channels // 2) if style.halve else fine
        down = strided(style.convolution, fine, width, 3, style.act)
        self.down = Choice(style.convolution, down)
        self.block = style.own(fusion((width, kept), spec, style.act))

    def forward(self, fine: Tensor, kept: Tensor) -> Tensor:
        output: Tensor = self.block(torch.cat([self.down(fine), kept], 1))
        return output
