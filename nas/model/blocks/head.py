"""The decoupled, anchor-free head: classes and distances to the four sides of a box.

The one-to-one kind has every level twice: branches that learn to find an object by several anchors,
as rich supervision for the features, and branches that learn to find it once. The latter take
features that are detached, so they do not pull at what the former teach (Wang et al., YOLOv10,
NeurIPS 2024, section 3.1). They alone are deployed, and need no suppression of duplicates.

Each distance is a distribution over bins (Distribution Focal Loss, Li et al., NeurIPS 2020); its
expectation times the stride is the distance in pixels.

Class logits are scaled by a constant while training, folded into the weights when deployed. The
bias starts at a low prior, and without the scale an adaptive optimiser of small steps spends
hundreds of iterations to move the logits at all, in which boxes learn and classes stay at chance.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from nas.model.blocks.convolution import ConvBN
from nas.model.blocks.layers import Conv2d, Layout, part
from nas.space.architecture import LEVELS, Architecture
from nas.space.architecture import Head as HeadSpec

__all__ = ["ClassPredictor", "Head", "distances"]

_PRIORS = {"P3": 0.0025, "P4": 0.005, "P5": 0.01}  # of an anchor to hold an object of some class
_LOGIT_SCALE = 4.0
_CLASS_STD = 0.01


class ClassPredictor(Conv2d):
    """The last class convolution: its logits start at the prior's, and move at a multiple speed."""

    def __init__(self, in_layout: Layout, classes: int, prior: float) -> None:
        self.prior = prior
        super().__init__(in_layout, (classes,), bias=True)

    def reset_parameters(self) -> None:
        """Start at the prior for every input."""
        if self.weight.is_meta or self.bias is None:
            return
        nn.init.normal_(self.weight, std=_CLASS_STD)
        nn.init.constant_(self.bias, -math.log((1 - self.prior) / self.prior) / _LOGIT_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, classes, H, W)."""
        return _LOGIT_SCALE * super().forward(x)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the plain convolution with the same logits."""
        conv = nn.Conv2d(self.in_channels, self.out_channels, 1, device="meta")
        conv.weight = nn.Parameter(_LOGIT_SCALE * self.weight)
        if self.bias is not None:
            conv.bias = nn.Parameter(_LOGIT_SCALE * self.bias)
        return conv.train(self.training)

    def _like(self, in_layout: Layout, out_layout: Layout) -> Self:
        return type(self)(in_layout, sum(out_layout), self.prior)


class _BoxPredictor(Conv2d):
    """The last box convolution: every distribution starts near the uniform one."""

    def __init__(self, in_layout: Layout, bins: int) -> None:
        super().__init__(in_layout, (bins,) * 4, bias=True)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias is not None and not self.bias.is_meta:
            nn.init.ones_(self.bias)

    def _like(self, in_layout: Layout, out_layout: Layout) -> Self:
        return type(self)(in_layout, out_layout[0])


class _Level(nn.Module):
    """The head of one level."""

    def __init__(
        self, head: HeadSpec, index: int, in_channels: int, classes: int, positions: int, act: str
    ) -> None:
        super().__init__()
        width, box_width = head.channels[index], head.box_channels[index]
        self.positions, self.classes, self.bins = positions, classes, head.bins
        self.stem = ConvBN((in_channels,), (width,), 1, act=act) if head.stem else nn.Identity()
        inner = width if head.stem else in_channels
        self.class_branch = _branch(inner, width, head.depth, act)
        self.box_branch = _branch(inner, box_width, head.depth, act)
        self.class_predictor = ClassPredictor((width,), classes, _PRIORS[LEVELS[index]])
        self.box_predictor = _BoxPredictor((box_width,), head.bins)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) to logits (B, classes, HW) and bins (B, 4, bins, HW)."""
        x = self.stem(x)
        logits = self.class_predictor(self.class_branch(x))
        bins = self.box_predictor(self.box_branch(x))
        return (
            logits.reshape(-1, self.classes, self.positions),
            bins.reshape(-1, 4, self.bins, self.positions),
        )


class Head(nn.Module):
    """One independent head for each of P3, P4, P5; two of them if the kind is one-to-one."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.levels = _levels(architecture, "head")
        self.one_to_one: nn.ModuleDict | None = None
        if architecture.head.kind == "one_to_one":
            self.one_to_one = _levels(architecture, "head.one_to_one")

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Map three features to what is deployed: logits (B, classes, A), bins (B, 4, bins, A).

        Anchors come last, as the convolutions leave them: a softmax over eight values that lie side
        by side takes an engine four times as long as one over eight rows of anchors.
        """
        return _joined(self.levels if self.one_to_one is None else self.one_to_one, features)

    def one_to_many(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Map three features to what several anchors for each object say, in the same shapes."""
        return _joined(self.levels, features)

    def keep_deployed(self) -> None:
        """Forget the branches that only help to train."""
        if self.one_to_one is not None:
            self.levels = nn.ModuleDict()


def _levels(architecture: Architecture, place: str) -> nn.ModuleDict:
    head, act = architecture.head, architecture.activation
    levels = nn.ModuleDict()
    for index, (level, width) in enumerate(zip(LEVELS, architecture.neck_channels, strict=True)):
        sizes = architecture.classes, architecture.tokens_at(level)
        levels[level] = part(f"{place}.{level}", _Level, head, index, width, *sizes, act)
    return levels


def _joined(levels: nn.ModuleDict, features: list[Tensor]) -> tuple[Tensor, Tensor]:
    found = (level(x) for level, x in zip(levels.values(), features, strict=True))
    logits, bins = zip(*found, strict=True)
    return torch.cat(logits, -1), torch.cat(bins, -1)


def distances(bins: Tensor, steps: Tensor) -> Tensor:
    """Return the expectations (B, 4, A), in strides, of logits (B, 4, bins, A).

    Args:
        bins: logits.
        steps: the distances that bins stand for, 0..bins - 1, as a row (1, bins).
    """
    return (steps @ bins.softmax(2)).squeeze(2)


def _branch(in_channels: int, width: int, depth: int, act: str) -> nn.Sequential:
    widths = (in_channels,) + (width,) * depth
    return nn.Sequential(*(ConvBN((a,), (b,), act=act) for a, b in pairwise(widths)))
