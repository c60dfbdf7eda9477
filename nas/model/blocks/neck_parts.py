"""What all necks have in common: a style, upsampling to any size, and attention at the levels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from nas.model.blocks.attention import attention_at
from nas.model.blocks.layers import Choice, ConvTranspose2d
from nas.space.architecture import Architecture, Convolution
from nas.space.record import Size

__all__ = ["Features", "Neck", "Style", "Upsample"]

Features = tuple[Tensor, Tensor, Tensor, Tensor]
"""The backbone's P2, P3, P4, P5."""


class Neck(nn.Module):
    """Holds the attention, under `attention.<level>` whatever the kind of the neck."""

    attention: nn.ModuleDict

    def _add_attention(self, architecture: Architecture) -> None:
        channels = {
            "P5": architecture.backbone.P5.channels,
            "P4": architecture.neck.top_down.P4.channels,
            "P3": architecture.neck.top_down.P3.channels,
        }
        points = {level: getattr(architecture.attention, level) for level in channels}
        self.attention = nn.ModuleDict(
            {
                level: attention_at(level, point, channels[level], architecture.feature_size(level))
                for level, point in points.items()
                if point is not None
            }
        )

    def _attend(self, level: str, x: Tensor) -> Tensor:
        return self.attention[level](x) if level in self.attention else x


class Style(NamedTuple):
    """What all steps of a neck have in common.

    Attributes:
        family: the name under which modules keep weights of their own, where the modules of another
            style stand at the same place and take something else; empty for plain names.
    """

    family: str
    convolution: Convolution
    upsample: str
    three_inputs: bool
    halve: bool
    act: str

    @classmethod
    def of(cls, architecture: Architecture, family: str = "") -> Style:
        """Take the style of an architecture's neck."""
        neck, act = architecture.neck, architecture.activation
        return cls(family, neck.convolution, neck.upsample, neck.three_inputs, neck.halve, act)

    def own(self, module: nn.Module) -> nn.Module:
        """Put a module under the name of the family."""
        return Choice(self.family, module) if self.family else module


class Upsample(nn.Module):
    """Double height and width, then crop to the size that the level has.

    Cropping keeps positions where a stride-2 convolution sees them.
    """

    def __init__(self, style: Style, channels: int, size: Size) -> None:
        super().__init__()
        self.size = size
        layout = (channels,)
        self.conv = ConvTranspose2d(layout, layout) if style.upsample == "transposed" else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ceil(H / 2), ceil(W / 2)) to (B, C, H, W)."""
        height, width = self.size
        x = F.interpolate(x, scale_factor=2.0) if self.conv is None else self.conv(x)
        return x[:, :, :height, :width] if height % 2 or width % 2 else x
