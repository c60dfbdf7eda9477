"""Attention blocks of published detectors, whole: what they add to their input is gated.

Both are blocks f; here y = x + g (f(x) - x), so g = 1 is the published block. Activations are the
published ones, whatever the rest of the network has.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import ArchitectureError
from nas.model.blocks.attention_base import Attention, attend, gating
from nas.model.blocks.convolution import ConvBN
from nas.model.blocks.layers import Conv2d, LayerNorm, Layout, widest
from nas.space.attention import Gate
from nas.space.record import Size

__all__ = ["EncoderLayer", "PartialAttention"]

_ENCODER_HEAD = 32  # channels: 8 heads at 256 channels
_PARTIAL_HEAD = 64
_TEMPERATURE = 10_000.0


class _Whole(Attention):
    """y = x + g (f(x) - x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        if isinstance(self.gate, nn.Identity):
            return self.block(x)
        return super().forward(x)

    def update(self, x: Tensor) -> Tensor:
        """See `Attention`."""
        return self.block(x) - x

    @abstractmethod
    def block(self, x: Tensor) -> Tensor:
        """Return f(x), of the shape of x, (B, C, H, W)."""

    def _heads(self, x: Tensor, heads: int, width: int) -> Tensor:
        """Reshape a map (B, heads width, H, W) to rows of each head, (B, heads, N, width)."""
        return x.reshape(-1, heads, width, self.positions).transpose(2, 3)

    def _merged(self, x: Tensor, channels: int) -> Tensor:
        """Undo `_heads`: (B, heads, N, width) to (B, channels, H, W)."""
        return x.transpose(2, 3).reshape(-1, channels, *self.size)


class EncoderLayer(_Whole):
    """The intra-scale encoder layer of RT-DETR, "AIFI" (Zhao et al., CVPR 2024, section 4.2).

    A post-norm transformer layer: z = LN(x + MHA(x + e, x + e, x)), f = LN(z + FFN(z)), with a
    sine-cosine embedding e of column and row (temperature 10000) on queries and keys, heads of 32
    channels, GELU, and 4C hidden channels. Where C is not a multiple of 32, heads are the next
    wider that divide it.

    Cost, in multiplications: 12NC^2 for the projections and the feed-forward network, and 2N^2C for
    scores and sums.

    Args:
        channels: C.
        size: H and W.
        gate: g.
    """

    columns: Tensor
    rows: Tensor

    def __init__(self, channels: int, size: Size, gate: Gate = "learned") -> None:
        super().__init__(channels, size)
        self.heads = _number_of_heads(channels, _ENCODER_HEAD)
        layout, hidden = (channels,), (4 * channels,)
        self.query = Conv2d(layout, layout, bias=True)
        self.key = Conv2d(layout, layout, bias=True)
        self.value = Conv2d(layout, layout, bias=True)
        self.output = Conv2d(layout, layout, bias=True)
        self.norm1, self.norm2 = LayerNorm(layout), LayerNorm(layout)
        self.expand = Conv2d(layout, hidden, bias=True)
        self.project = Conv2d(hidden, layout, bias=True)
        self.gate = gating(gate)
        columns, rows = _embedding(channels, size)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("rows", rows, persistent=False)

    def block(self, x: Tensor) -> Tensor:
        """See the class."""
        width = self.channels // self.heads
        placed = x + self.columns + self.rows
        query = self._heads(self.query(placed), self.heads, width)
        key = self._heads(self.key(placed), self.heads, width)
        value = self._heads(self.value(x), self.heads, width)
        mixed = self._merged(attend(query, key, value, width**-0.5), self.channels)
        z = self._normalised(self.norm1, x + self.output(mixed))
        return self._normalised(self.norm2, z + self.project(F.gelu(self.expand(z))))

    @property
    def mixing_macs(self) -> int:
        """See `Attention`."""
        return 2 * self.positions**2 * self.channels

    @property
    def macs(self) -> int:
        """See `Attention`."""
        return 12 * self.positions * self.channels**2 + self.mixing_macs

    def _normalised(self, norm: LayerNorm, x: Tensor) -> Tensor:
        normalised: Tensor = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normalised


class PartialAttention(_Whole):
    """Partial self-attention, "PSA" (Wang et al., YOLOv10, NeurIPS 2024, section 3.2).

    A 1x1 convolution splits into two halves of c = C // 2 channels; one passes through attention
    and a feed-forward network, each with a residual, and a 1x1 convolution merges both. Queries and
    keys have half the width of values, heads have 64 channels (where c is not a multiple of 64,
    the next wider that divide it), and a 3x3 depthwise convolution of the values is added to what
    was attended. Every convolution is followed by batch normalisation; the first of the block, the
    first of the feed-forward network and the last of the block also by SiLU.

    Cost, in multiplications: N (4Cc + 7c^2 + 9c) for the convolutions and 1.5 N^2 c for scores and
    sums, where c and the width of its heads are even.

    Args:
        channels: C, at least 2.
        size: H and W.
        gate: g.

    Raises:
        ArchitectureError: there is one channel, which has no half.
    """

    def __init__(self, channels: int, size: Size, gate: Gate = "learned") -> None:
        super().__init__(channels, size)
        if channels < 2:
            raise ArchitectureError(
                f"Partial self-attention splits its channels, which takes at least 2, "
                f"got {channels}."
            )
        self.inner = channels // 2
        self.heads = _number_of_heads(self.inner, _PARTIAL_HEAD)
        self.keys = self.heads * max(1, self.inner // self.heads // 2)
        one, both = (self.inner,), (self.inner, self.inner)
        self.split = ConvBN((channels,), both, 1, act="silu")
        self.qkv = _linear(ConvBN(one, (self.keys, self.keys, self.inner), 1))
        self.place = _linear(_DepthwiseBN(self.inner))
        self.output = _linear(ConvBN(one, one, 1))
        self.expand = ConvBN(one, both, 1, act="silu")
        self.project = _linear(ConvBN(both, one, 1))
        self.merge = ConvBN(both, (channels,), 1, act="silu")
        self.gate = gating(gate)

    def block(self, x: Tensor) -> Tensor:
        """See the class."""
        kept, z = self.split(x).split(self.inner, 1)
        z = z + self._attended(z)
        z = z + self.project(self.expand(z))
        output: Tensor = self.merge(torch.cat([kept, z], 1))
        return output

    @property
    def mixing_macs(self) -> int:
        """See `Attention`."""
        return self.positions**2 * (self.keys + self.inner)

    @property
    def macs(self) -> int:
        """See `Attention`."""
        c = self.inner
        between = c * (2 * self.keys + c) + 9 * c + c**2 + 4 * c**2
        around = 4 * self.channels * c
        return self.positions * (around + between) + self.mixing_macs

    def _attended(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).split([self.keys, self.keys, self.inner], 1)
        thin, wide = self.keys // self.heads, self.inner // self.heads
        mixed = attend(
            self._heads(query, self.heads, thin),
            self._heads(key, self.heads, thin),
            self._heads(value, self.heads, wide),
            thin**-0.5,
        )
        output: Tensor = self.output(self._merged(mixed, self.inner) + self.place(value))
        return output


class _Depthwise(Conv2d):
    """A 3x3 convolution of each channel by itself."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout, layout, 3, groups=sum(layout))

    def widened(self, other: Self) -> Self:
        """See `Shareable`."""
        return type(self)(widest(self.out_layout, other.out_layout))


class _DepthwiseBN(ConvBN):
    def __init__(self, channels: int) -> None:
        super().__init__((channels,), (channels,), 3, groups=channels)
        self.conv = _Depthwise((channels,))  # the plain one cannot be shared between widths


def _linear(unit: ConvBN) -> ConvBN:
    """Take a unit's activation away."""
    unit.act = nn.Identity()
    return unit


def _number_of_heads(channels: int, width: int) -> int:
    """Return the largest number of equal heads that are at least so wide; one if none is."""
    return next(
        (heads for heads in range(channels // width, 1, -1) if channels % heads == 0),
        1,
    )


def _embedding(channels: int, size: Size) -> tuple[Tensor, Tensor]:
    """Return the embedding as a sum of what depends on the column and what does on the row.

    With q = ceil(C / 4) frequencies w_i = 10000^(-i / q), the channels are sin and cos of (column
    w_i), then sin and cos of (row w_i), cut to C. The sum of (1, C, 1, W) and (1, C, H, 1) takes a
    fraction of the memory of the whole.
    """
    quarter = -(-channels // 4)
    frequencies = _TEMPERATURE ** -(torch.arange(quarter, device="cpu") / quarter)
    parts = []
    for length in (size[1], size[0]):
        angles = torch.arange(length, device="cpu") * frequencies[:, None]
        parts.append(torch.cat([angles.sin(), angles.cos()]))
    columns = F.pad(parts[0], (0, 0, 0, 2 * quarter))[:channels]
    rows = F.pad(parts[1], (0, 0, 2 * quarter, 0))[:channels]
    return columns[None, :, None, :], rows[None, :, :, None]
