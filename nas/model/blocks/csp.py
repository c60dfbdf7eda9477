"""Cross-stage partial blocks: what a `Fusion` names.

All have the constructor `(in_layout, spec, activation)` and map (B, sum(in_layout), H, W) to
(B, spec.channels, H, W). A smaller depth uses the first bottlenecks, and its concatenation has the
first parts of the deeper one's, so both can share weights.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from nas.model.blocks.convolution import ConvBN, QARepVGG, RepVGG, Unit
from nas.model.blocks.layers import Choice, Layout, Scale
from nas.space.architecture import Fusion

__all__ = ["C2f", "ConvCSP", "QARepVGGCSP", "RepVGGCSP"]


class _Bottleneck(nn.Module):
    """y = alpha x + unit(unit(x)), with a learnable alpha; without shortcut y = unit(unit(x))."""

    def __init__(self, unit: type[Unit], hidden: int, *, shortcut: bool, act: str) -> None:
        super().__init__()
        self.unit1 = unit((hidden,), (hidden,), act=act)
        self.unit2 = unit((hidden,), (hidden,), act=act)
        self.alpha = Scale(1.0) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.unit2(self.unit1(x))
        return y if self.alpha is None else self.alpha(x) + y


class _CSP(nn.Module):
    """The CSP layer of YOLO-NAS (super-gradients' `YoloNASCSPLayer`).

    Two 1x1 convolutions to `hidden`: one is followed by the bottlenecks, the other bypasses them.
    The last 1x1 convolution sees (bypass, last), or with `concat_intermediates` (bypass, first,
    every bottleneck's output). The two cases have separate weights there, as the parts differ in
    meaning.
    """

    unit: ClassVar[type[Unit]]

    def __init__(self, in_layout: Layout, spec: Fusion, activation: str) -> None:
        super().__init__()
        hidden = (spec.hidden,)
        self.everything = spec.concat_intermediates
        self.conv1 = ConvBN(in_layout, hidden, 1, act=activation)
        self.conv2 = ConvBN(in_layout, hidden, 1, act=activation)
        self.bottlenecks = nn.ModuleList(
            _Bottleneck(self.unit, spec.hidden, shortcut=spec.shortcut, act=activation)
            for _ in range(spec.depth)
        )
        parts = hidden * (2 + spec.depth if self.everything else 2)
        merge = ConvBN(parts, (spec.channels,), 1, act=activation)
        self.conv3 = Choice("all" if self.everything else "last", merge)

    def forward(self, x: Tensor) -> Tensor:
        """See the module."""
        chain = [self.conv1(x)]
        for bottleneck in self.bottlenecks:
            chain.append(bottleneck(chain[-1]))
        parts = [self.conv2(x), *(chain if self.everything else chain[-1:])]
        output: Tensor = self.conv3(torch.cat(parts, 1))
        return output


class QARepVGGCSP(_CSP):
    """With quantization-aware re-parameterized bottlenecks: YOLO-NAS backbone and up-stages."""

    unit = QARepVGG


class RepVGGCSP(_CSP):
    """With RepVGG bottlenecks: fast in floating point, fragile in INT8."""

    unit = RepVGG


class ConvCSP(_CSP):
    """With plain bottlenecks: YOLO-NAS down-stages."""

    unit = ConvBN


class C2f(nn.Module):
    """The block of YOLOv8: split, bottlenecks of two 3x3 convolutions, everything concatenated.

    `concat_intermediates` has no effect: this block always concatenates.
    """

    def __init__(self, in_layout: Layout, spec: Fusion, activation: str) -> None:
        super().__init__()
        hidden = (spec.hidden,)
        self.hidden, self.shortcut = spec.hidden, spec.shortcut
        self.conv1 = ConvBN(in_layout, hidden * 2, 1, act=activation)
        self.bottlenecks = nn.ModuleList(
            nn.Sequential(
                ConvBN(hidden, hidden, act=activation), ConvBN(hidden, hidden, act=activation)
            )
            for _ in range(spec.depth)
        )
        self.conv2 = ConvBN(hidden * (2 + spec.depth), (spec.channels,), 1, act=activation)

    def forward(self, x: Tensor) -> Tensor:
        """See the module."""
        parts = list(self.conv1(x).split(self.hidden, 1))
        for bottleneck in self.bottlenecks:
            y = bottleneck(parts[-1])
            parts.append(parts[-1] + y if self.shortcut else y)
        output: Tensor = self.conv2(torch.cat(parts, 1))
        return output
