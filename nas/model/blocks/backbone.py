"""The backbone: a stem and four stages, each halving height and width."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from nas import plugins
from nas.model.blocks.convolution import strided
from nas.model.blocks.layers import Choice, Layout, part
from nas.model.blocks.pooling import pooling
from nas.space.architecture import Architecture, Fusion, Stage, Stem

__all__ = ["Backbone", "fusion"]


class Backbone(nn.Module):
    """Images to features of strides 4, 8, 16 and 32, the last one pooled.

    Attributes:
        recompute: keep only the inputs of stem and stages for the backward pass, and compute what
            is inside them again (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
            Statistics that batch normalisation keeps would be updated twice, so it must keep none.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.recompute = False
        stem, stages, act = architecture.stem, architecture.backbone, architecture.activation
        self.stem = part("stem", _stem, stem, act)
        self.P2 = part("P2", _stage, stem.channels, stages.P2, act)
        self.P3 = part("P3", _stage, stages.P2.channels, stages.P3, act)
        self.P4 = part("P4", _stage, stages.P3.channels, stages.P4, act)
        self.P5 = part("P5", _stage, stages.P4.channels, stages.P5, act)
        self.pooling = part("pooling", pooling, architecture.pooling, stages.P5.channels, act)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) to P2, P3, P4, P5."""
        return self.late(self.early(images))

    def early(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to P2, through what has most positions and fewest choices."""
        return self._run(self.P2, self._run(self.stem, images))

    def late(self, p2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map P2 to P2, P3, P4, P5."""
        p3 = self._run(self.P3, p2)
        p4 = self._run(self.P4, p3)
        return p2, p3, p4, self.pooling(self._run(self.P5, p4))

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            output: Tensor = stage(x)
            return output
        # A supernet lends a stage its weights for the forward pass only: the second pass comes
        # when they have gone, so they are kept with its input.
        weights = dict(stage.named_parameters(remove_duplicate=False))

        def again(x: Tensor, *tensors: Tensor) -> Tensor:
            lent = dict(zip(weights, tensors, strict=True))
            output: Tensor = functional_call(stage, lent, (x,), tie_weights=False)
            return output

        kept: Tensor = checkpoint(
            again, x, *weights.values(), use_reentrant=False, preserve_rng_state=False
        )
        return kept


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
