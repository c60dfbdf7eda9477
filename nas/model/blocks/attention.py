"""Global self-attention on a feature map, over all positions or over the most energetic ones.

The sparse form attends among the k positions of largest squared L2 norm and leaves the value of
every other position as it is. The hard selection passes no gradient to the question of *which*
positions are taken: only values, queries and keys of those taken learn. A gate that starts at zero
makes the block an identity at first, so it can be inserted anywhere.

For engines, every shape is a constant of the module: no operator depends on a shape computed at run
time. With one input size the sparse form exports to TopK, GatherElements and ScatterElements.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.errors import ArchitectureError
from nas.model.blocks.layers import Conv2d, LayerNorm, Scale

__all__ = ["GlobalAttention"]

_LARGEST_TOKENS = 3840  # of TopK in TensorRT
_SCORE_SCALE = 16.0  # a power of two: keeps the order, and keeps squares of half precision finite


class GlobalAttention(nn.Module):
    """y = x + gate W_o s(x), with s single-head attention among selected positions.

    Queries and keys share one layer normalisation; the scale is C^-1/2; softmax is in float32
    whatever the autocast.

    Args:
        channels: C.
        tokens: k, or None for the dense form, which equals k = H W without selection.
        size: H and W.

    Raises:
        ArchitectureError: k lies outside 1..H W, or above what TopK of TensorRT takes.
    """

    zeros: Tensor

    def __init__(self, channels: int, tokens: int | None, size: tuple[int, int]) -> None:
        super().__init__()
        if tokens is not None and not 1 <= tokens <= min(size[0] * size[1], _LARGEST_TOKENS):
            raise ArchitectureError(
                f"Attention selects between 1 and {min(size[0] * size[1], _LARGEST_TOKENS)} "
                f"positions of a {size[0]}x{size[1]} map, got {tokens}.",
                "Choose a smaller number of tokens, or dense attention.",
            )
        self.channels, self.tokens, self.size = channels, tokens, size
        layout = (channels,)
        self.query, self.key = Conv2d(layout, layout), Conv2d(layout, layout)
        self.value, self.output = Conv2d(layout, layout), Conv2d(layout, layout)
        self.norm = LayerNorm(layout)
        self.gate = Scale(0.0)
        zeros = torch.zeros(1, channels, 1, dtype=torch.int64, device="cpu")
        self.register_buffer("zeros", zeros, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        everywhere = self.size[0] * self.size[1]
        value = self._flat(self.value(x), everywhere)
        if self.tokens is None:
            mixed = self._attend(x, value)
        else:
            index = self._select(x, self.tokens)
            chosen = self._flat(x, everywhere).gather(2, index).unsqueeze(3)
            attended = self._attend(chosen, value.gather(2, index))
            mixed = value.scatter(2, index, attended)
        output: Tensor = x + self.gate(self.output(mixed.reshape(-1, self.channels, *self.size)))
        return output

    @property
    def attended_positions(self) -> int:
        """Number of positions that attend to one another."""
        return self.size[0] * self.size[1] if self.tokens is None else self.tokens

    @property
    def macs(self) -> int:
        """Multiplications for one image: values and outputs everywhere, the rest among k."""
        everywhere, k, c = self.size[0] * self.size[1], self.attended_positions, self.channels
        return 2 * everywhere * c**2 + 2 * k * c**2 + 2 * k**2 * c

    def _select(self, x: Tensor, tokens: int) -> Tensor:
        """Return the positions of largest norm as an index (B, C, k) into flat maps."""
        energy = (x.detach().float() / _SCORE_SCALE).square().sum(1)
        scores = energy.reshape(-1, self.size[0] * self.size[1])
        index = scores.topk(tokens, dim=1).indices
        # Adding zeros exports as one Add; `expand` becomes a chain that computes a shape.
        return index.unsqueeze(1) + self.zeros

    def _attend(self, positions: Tensor, value: Tensor) -> Tensor:
        """Attend among positions (B, C, k, 1) or a whole map, with values (B, C, k); (B, C, k)."""
        count = self.attended_positions
        query = self.norm(self._flat(self.query(positions), count).transpose(1, 2))
        key = self.norm(self._flat(self.key(positions), count).transpose(1, 2))
        logits = (query @ key.transpose(1, 2)).float() * self.channels**-0.5
        weights = logits.softmax(2).to(value.dtype)
        mixed: Tensor = value @ weights.transpose(1, 2)
        return mixed.to(value.dtype)

    def _flat(self, x: Tensor, positions: int) -> Tensor:
        return x.reshape(-1, self.channels, positions)
