"""Attention of every position to a few places that it learns to look at, between positions, too.

Values are read by bilinear interpolation. ONNX has GridSample for that, which TensorRT miscompiles
(NVIDIA/TensorRT issue 4813), so the four neighbours are gathered and weighted here.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from nas.model.blocks.attention_base import Attention, gating, take
from nas.model.blocks.layers import Conv2d, Layout
from nas.space.attention import Gate
from nas.space.record import Size

__all__ = ["DeformableAttention"]

_RADIUS = 2.0  # in positions: beyond what the next 3x3 convolution sees
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


class DeformableAttention(Attention):
    """Deformable attention on one level, with one head (Zhu et al., ICLR 2021, equation 2).

    u(x) at position z is W_o sum_p a_p (W_v x)(z + d_p): offsets d_p, in positions, and weights
    a = softmax(.) are 1x1 convolutions of x with bias. Values are interpolated bilinearly and are 0
    beyond the map, as `grid_sample(align_corners=False, padding_mode="zeros")` does it. Offsets
    start on a circle of radius 2 around z, the p-th one a golden angle after the one before, so
    that fewer points are the first ones of more; weights start equal.

    Cost, in multiplications: 2NC^2 + 3pNC for the convolutions, and 4pNC for sampling and sums.

    Args:
        channels: C.
        size: H and W.
        points: p.
        gate: g.
    """

    row: Tensor
    column: Tensor

    def __init__(self, channels: int, size: Size, points: int, gate: Gate = "learned") -> None:
        super().__init__(channels, size)
        self.points = points
        layout = (channels,)
        self.value, self.output = Conv2d(layout, layout), Conv2d(layout, layout)
        self.offsets = _Offsets(layout, (2 * points,))
        self.weights = _Even(layout, (points,))
        self.gate = gating(gate)
        place = torch.arange(self.positions, device="cpu")
        self.register_buffer("row", place // size[1], persistent=False)
        self.register_buffer("column", place % size[1], persistent=False)

    def update(self, x: Tensor) -> Tensor:
        """See `Attention`."""
        rows = self._rows(self.value(x))
        index, weights = self._corners(x)
        weights = weights.to(rows.dtype)
        mixed = self._sample(rows, index, weights, 0)
        for point in range(1, self.points):
            mixed = mixed + self._sample(rows, index, weights, point)
        output: Tensor = self.output(self._map(mixed))
        return output

    @property
    def mixing_macs(self) -> int:
        """See `Attention`."""
        return 4 * self.points * self.positions * self.channels

    @property
    def macs(self) -> int:
        """See `Attention`."""
        c = self.channels
        return self.positions * c * (2 * c + 3 * self.points) + self.mixing_macs

    def _corners(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return index and weight of four neighbours for each point, (B, p, 4, N)."""
        shift = self.offsets(x).float().reshape(-1, self.points, 2, self.positions)
        share = self.weights(x).float().reshape(-1, self.points, self.positions).softmax(1)
        columns, across = _neighbours(self.column, shift[:, :, 0], self.size[1])
        rows, down = _neighbours(self.row, shift[:, :, 1], self.size[0])
        index = [row * self.size[1] + column for row in rows for column in columns]
        weights = [upright * lying * share for upright in down for lying in across]
        return torch.stack(index, 2), torch.stack(weights, 2)

    def _sample(self, rows: Tensor, index: Tensor, weights: Tensor, point: int) -> Tensor:
        """Return the weighted values (B, N, C) at one point of every position."""
        found = take(rows, index[:, point].reshape(-1, 4 * self.positions), self.channels)
        found = found * weights[:, point].reshape(-1, 4 * self.positions, 1)
        return found.reshape(-1, 4, self.positions, self.channels).sum(1)


class _Even(Conv2d):
    """A 1x1 convolution with bias that starts at 0."""

    def __init__(self, in_layout: Layout, out_layout: Layout) -> None:
        super().__init__(in_layout, out_layout, bias=True)

    def reset_parameters(self) -> None:
        """Start at 0; free on the meta device."""
        if not self.weight.is_meta:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # it has one

    def _like(self, in_layout: Layout, out_layout: Layout) -> Self:
        return type(self)(in_layout, out_layout)


class _Offsets(_Even):
    """It starts with offsets (column, row) on a circle, wherever the input comes from."""

    def reset_parameters(self) -> None:
        """Start on the circle; free on the meta device."""
        super().reset_parameters()
        if not self.weight.is_meta:
            angles = _GOLDEN_ANGLE * torch.arange(self.out_channels // 2)
            circle = _RADIUS * torch.stack([angles.cos(), angles.sin()], 1)
            with torch.no_grad():
                self.bias.copy_(circle.flatten())  # type: ignore[union-attr]  # it has one


def _neighbours(
    places: Tensor, shift: Tensor, length: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the positions before and after `places + shift`, and the weights of both.

    A position beyond the map is moved to its edge and has the weight 0. Positions are counted in
    integers: an engine that runs in half precision does not have all of them as numbers.
    """
    steps = shift.floor()
    share = shift - steps
    # One step more than the map is long leads out of it from everywhere.
    before = places + steps.clamp(-length - 1, length).long()
    after = before + 1
    first, last = _clipped(before, length), _clipped(after, length)
    weights = (1 - share) * (first == before).float(), share * (last == after).float()
    return (first, last), weights


def _clipped(positions: Tensor, length: int) -> Tensor:
    """Move positions into 0..length-1. By two operators: TensorRT has no Clip of integers."""
    return torch.minimum(torch.maximum(positions, torch.tensor(0)), torch.tensor(length - 1))
