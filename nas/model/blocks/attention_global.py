"""Self-attention over all positions of a map, or among k selected ones.

The sparse form attends among the selected positions and leaves the value of every other position as
it is. A hard selection passes no gradient to the question of *which* positions are taken: only
values, queries and keys of those taken learn. The `learned` selection opens a way around: its
score, as a probability p = sigmoid(s), also says how much a position is listened to and how much
its own value is replaced, and that is differentiable:

    logits_ij = q_i k_j C^-1/2 + log p_j,    m_i = v_i + p_i (sum_j softmax(logits_i)_j v_j - v_i)

so a score rises where being selected lowers the loss, and its convolution carries what it learned
to the positions that were not selected.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.errors import ArchitectureError
from nas.model.blocks.attention_base import ProjectedAttention
from nas.model.blocks.layers import Conv2d
from nas.space.attention import LARGEST_TOPK, Gate, Selection
from nas.space.record import Size

__all__ = ["GlobalAttention"]

_SCORE_SCALE = 16.0  # a power of two: keeps the order, and keeps squares of half precision finite
_SEED = 20_040_229  # of the random positions: part of what the network is


class GlobalAttention(ProjectedAttention):
    """y = x + g W_o s(x), with s single-head attention among selected positions.

    With one input size the forms that select by a score export to TopK, GatherElements and
    ScatterElements; those with fixed positions have their index as a constant.

    Cost, in multiplications: 2NC^2 + 2kC^2 for the projections, of which queries and keys are made
    for the k selected positions only, and 2k^2C for scores and sums; NC more for learned scores.
    Dense: k = N.

    Args:
        channels: C.
        tokens: k, or None for the dense form, which equals k = N without selection.
        size: H and W.
        selection: the positions of largest squared L2 norm; of largest L2 norm (the same, by one
            more operator); of the largest learned score; k positions drawn once for each size of
            the map, of which a larger k has more; or positions floor(i N / k), row by row.
        gate: g.

    Raises:
        ArchitectureError: k lies outside 1..N, or above what TopK of TensorRT takes.
    """

    zeros: Tensor
    fixed: Tensor
    merged: Tensor

    def __init__(
        self,
        channels: int,
        tokens: int | None,
        size: Size,
        selection: Selection = "squared_l2",
        gate: Gate = "learned",
    ) -> None:
        super().__init__(channels, size, gate)
        most = min(self.positions, LARGEST_TOPK)
        if tokens is not None and not 1 <= tokens <= most:
            raise ArchitectureError(
                f"Attention selects between 1 and {most} "
                f"positions of a {size[0]}x{size[1]} map, got {tokens}.",
                "Choose a smaller number of tokens, or dense attention.",
            )
        self.tokens, self.selection = tokens, selection
        self.score: Conv2d | None = None
        if tokens is not None and selection == "learned":
            self.score = Conv2d((channels,), (1,), bias=True)
        if tokens is not None and selection in ("random", "strided"):
            fixed = _fixed_positions(selection, tokens, self.positions)
            merged = torch.arange(self.positions, device="cpu")
            merged[fixed] = self.positions + torch.arange(tokens, device="cpu")
            self.register_buffer("fixed", fixed, persistent=False)
            self.register_buffer("merged", merged, persistent=False)
        zeros = torch.zeros(1, channels, 1, dtype=torch.int64, device="cpu")
        self.register_buffer("zeros", zeros, persistent=False)

    def update(self, x: Tensor) -> Tensor:
        """See `Attention`."""
        value = self._flat(self.value(x), self.positions)
        if self.tokens is None:
            mixed = self._attend(x, value)
        elif self.score is not None:
            scores = self.score(x).float().reshape(-1, self.positions)
            mixed = self._mix_scored(x, value, scores, self.tokens)
        elif self.selection in ("random", "strided"):
            chosen = self._flat(x, self.positions).index_select(2, self.fixed).unsqueeze(3)
            attended = self._attend(chosen, value.index_select(2, self.fixed))
            mixed = torch.cat([value, attended], 2).index_select(2, self.merged)
        else:
            index = self._select(x, self.tokens)
            chosen = self._flat(x, self.positions).gather(2, index).unsqueeze(3)
            attended = self._attend(chosen, value.gather(2, index))
            mixed = value.scatter(2, index, attended)
        output: Tensor = self.output(mixed.reshape(-1, self.channels, *self.size))
        return output

    @property
    def attended_positions(self) -> int:
        """Number of positions that attend to one another."""
        return self.positions if self.tokens is None else self.tokens

    @property
    def mixing_macs(self) -> int:
        """See `Attention`."""
        return 2 * self.attended_positions**2 * self.channels

    @property
    def macs(self) -> int:
        """See `Attention`."""
        everywhere, k, c = self.positions, self.attended_positions, self.channels
        scores = 0 if self.score is None else everywhere * c
        return 2 * everywhere * c**2 + 2 * k * c**2 + self.mixing_macs + scores

    def _mix_scored(self, x: Tensor, value: Tensor, scores: Tensor, tokens: int) -> Tensor:
        """Attend among the positions of largest score (B, N), as far as their scores go."""
        top, places = scores.topk(tokens, dim=1)
        index, top = places.unsqueeze(1) + self.zeros, top.unsqueeze(1)
        chosen = self._flat(x, self.positions).gather(2, index).unsqueeze(3)
        own = value.gather(2, index)
        # log sigmoid, in the form that stays finite in every engine.
        attended = self._attend(chosen, own, -F.softplus(-top))
        strength = top.sigmoid().to(own.dtype)
        return value.scatter(2, index, own + strength * (attended - own))

    def _select(self, x: Tensor, tokens: int) -> Tensor:
        """Return the positions of largest norm as an index (B, C, k) into flat maps."""
        energy = (x.detach().float() / _SCORE_SCALE).square().sum(1)
        scores = energy.reshape(-1, self.positions)
        if self.selection == "l2":
            scores = scores.sqrt()
        index = scores.topk(tokens, dim=1).indices
        # Adding zeros exports as one Add; `expand` becomes a chain that computes a shape.
        return index.unsqueeze(1) + self.zeros

    def _attend(self, positions: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend among positions (B, C, k, 1) or a whole map, with values (B, C, k); (B, C, k)."""
        count = self.attended_positions
        query = self.norm(self._flat(self.query(positions), count).transpose(1, 2))
        key = self.norm(self._flat(self.key(positions), count).transpose(1, 2))
        logits = (query @ key.transpose(1, 2)).float() * self.channels**-0.5
        if bias is not None:
            logits = logits + bias
        weights = logits.softmax(2).to(value.dtype)
        mixed: Tensor = value @ weights.transpose(1, 2)
        return mixed.to(value.dtype)

    def _flat(self, x: Tensor, positions: int) -> Tensor:
        return x.reshape(-1, self.channels, positions)


def _fixed_positions(selection: Selection, tokens: int, positions: int) -> Tensor:
    """Return k positions in ascending order, (k,) int64 on the CPU."""
    if selection == "strided":
        return torch.arange(tokens, device="cpu") * positions // tokens
    generator = torch.Generator("cpu").manual_seed(_SEED)
    shuffled = torch.randperm(positions, generator=generator, device="cpu")
    return shuffled[:tokens].sort().values
