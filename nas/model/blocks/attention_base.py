"""What the attention families have in common: the gated residual, projections, and the softmax.

Every shape is a constant of the module, and no operator depends on a shape computed at run time:
engines choose kernels by shapes. A module serves one size of the map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nas.model.blocks.layers import Conv2d, LayerNorm, Scale
from nas.space.attention import Gate
from nas.space.record import Size

__all__ = ["MASKED", "Attention", "ProjectedAttention", "attend", "gating", "take"]

MASKED = -1e4
"""Added to the logits of keys that are padding: finite in half precision, and its exp is 0."""

_FIXED_GATE = 0.5


class Attention(nn.Module, ABC):
    """y = x + g u(x) on a feature map.

    Args:
        channels: C.
        size: H and W; N = H W below and in the cost laws of all families.
    """

    gate: nn.Module

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.channels, self.size = channels, size

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        output: Tensor = x + self.gate(self.update(x))
        return output

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """Return u(x), of the shape of x, (B, C, H, W)."""

    @property
    @abstractmethod
    def mixing_macs(self) -> int:
        """Multiplications for one image between positions: scores and weighted sums of values."""

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiplications for one image, projections included; the class says the law."""

    @property
    def positions(self) -> int:
        """N, the number of positions of the map."""
        return math.prod(self.size)

    def _rows(self, x: Tensor) -> Tensor:
        """Reshape a map (B, C, H, W) to one row for each position, (B, N, C)."""
        return x.reshape(-1, self.channels, self.positions).transpose(1, 2)

    def _map(self, rows: Tensor) -> Tensor:
        """Turn rows (B, N, C) back into a map (B, C, H, W)."""
        return rows.transpose(1, 2).reshape(-1, self.channels, *self.size)


class ProjectedAttention(Attention):
    """Single-head attention with 1x1 projections and normalised queries and keys.

    u(x) = W_o mix(LN(W_q x), LN(W_k x), W_v x). Queries and keys share one layer normalisation, no
    projection has a bias, and the logits are scaled by C^-1/2.
    """

    def __init__(self, channels: int, size: Size, gate: Gate = "learned") -> None:
        super().__init__(channels, size)
        layout = (channels,)
        self.query, self.key = Conv2d(layout, layout), Conv2d(layout, layout)
        self.value, self.output = Conv2d(layout, layout), Conv2d(layout, layout)
        self.norm = LayerNorm(layout)
        self.gate = gating(gate)


class _Constant(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def gating(gate: Gate) -> nn.Module:
    """Build g: a learned number that starts at 0, the number 0.5, or 1."""
    if gate == "learned":
        return Scale(0.0)
    return _Constant(_FIXED_GATE) if gate == "fixed" else nn.Identity()


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Attend; the softmax is in float32 whatever the autocast.

    Args:
        query: (..., n, d).
        key: (..., m, d).
        value: (..., m, e).
        scale: of the logits.
        bias: added to the scaled logits (..., n, m).

    Returns:
        (..., n, e), in the type of the values.
    """
    logits = (query @ key.transpose(-1, -2)).float() * scale
    if bias is not None:
        logits = logits + bias
    mixed: Tensor = logits.softmax(-1).to(value.dtype) @ value
    return mixed.to(value.dtype)


def take(rows: Tensor, index: Tensor, channels: int) -> Tensor:
    """Return the rows (B, K, C) of `rows` (B, N, C) that `index` (B, K) names."""
    if torch.jit.is_tracing() and len(rows) == 1:  # type: ignore[attr-defined,no-untyped-call]
        # One Gather of whole rows, instead of an index for every channel.
        return rows.reshape(-1, channels).index_select(0, index.reshape(-1)).unsqueeze(0)
    return rows.gather(1, index.unsqueeze(2).expand(-1, -1, channels))
