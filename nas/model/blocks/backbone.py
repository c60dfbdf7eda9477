"""The backbone: a stem and four stages, each halving height and width."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor, nn

from nas import plugins
from nas.model.blocks.convolution import strided
from nas.model.blocks.layers import Choice, Layout, part
from nas.model.blocks.pooling import pooling
from nas.space.architecture import Architecture, Fusion, Stage, Stem

__all__ = ["Backbone", "fusion"]


class Backbone(nn.Module):
    """Images to features of strides 4, 8, 16 and 32, the last one pooled."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        stem, stages, act = architecture.stem, architecture.backbone, architecture.activation
        self.stem = part("stem", _stem, stem, act)
        self.P2 = part("P2", _stage, stem.channels, stages.P2, act)
        self.P3 = part("P3", _stage, stages.P2.channels, stages.P3, act)
        self.P4 = part("P4", _stage, stages.P3.channels, stages.P4, act)
        self.P5 = part("P5", _stage, stages.P4.channels, stages.P5, act)
        self.pooling = part("pooling", pooling, architecture.pooling, stages.P5.channels, act)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) to P2, P3, P4, P5."""
        p2 = self.P2(self.stem(images))
        p3 = self.P3(p2)
        p4 = self.P4(p3)
        return p2, p3, p4, self.pooling(self.P5(p4))


def fusion(in_layout: Layout, spec: Fusion, activation: str) -> Choice:
    """Build the block that the record names."""
    return Choice(spec.block, _block(spec.block)(in_layout, spec, activation))


@cache
def _block(name: str) -> Callable[[Layout, Fusion, str], nn.Module]:
    # Looking a plug-in up reads the metadata of everything installed, and a network has eight.
    found: Callable[[Layout, Fusion, str], nn.Module] = plugins.load("blocks", name)
    return found


def _stem(stem: Stem, activation: str) -> Choice:
    first = strided(stem.convolution, 3, stem.channels, stem.kernel, activation)
    # Kernels of different sizes share nothing, so the size is part of the name.
    return Choice(f"{stem.convolution}{stem.kernel}", first)


def _stage(in_channels: int, spec: Stage, activation: str) -> nn.Sequential:
    down = strided(spec.convolution, in_channels, spec.channels, 3, activation)
    stage = nn.Sequential()
    stage.add_module("down", Choice(spec.convolution, down))
    stage.add_module("block", fusion((spec.channels,), spec, activation))
    return stage
