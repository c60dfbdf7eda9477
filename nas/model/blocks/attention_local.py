"""Attention of every position to some others: of its window, on a coarser grid, or hashed alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.errors import ArchitectureError
from nas.model.blocks.attention_base import MASKED, ProjectedAttention, attend, take
from nas.space.attention import LARGEST_TOPK, Gate
from nas.space.record import Size

__all__ = ["HashedAttention", "StridedAttention", "WindowedAttention"]

_SEED = 20_010_411  # of the hashing directions: part of what the network is


class WindowedAttention(ProjectedAttention):
    """Attention within windows that do not overlap (Liu et al., Swin Transformer, ICCV 2021).

    Without shifts and without a position bias: the convolutions around it pass on what lies in
    other windows, and where positions lie. Windows start at the upper left. Where they do not fill
    the map, it is padded, and keys that are padding get no weight; a window that is larger than
    the map in a direction ends with it there.

    Cost, in multiplications: 4NC^2 for the projections and 2PnC for scores and sums, with n
    positions in a window (w^2, or less on a small map) and P positions after padding.

    Args:
        channels: C.
        size: H and W.
        window: w, the side of the windows.
        gate: g.
    """

    order: Tensor
    inverse: Tensor
    mask: Tensor | None

    def __init__(self, channels: int, size: Size, window: int, gate: Gate = "learned") -> None:
        super().__init__(channels, size, gate)
        places = _windows(size, (min(window, size[0]), min(window, size[1])))
        self.windows, self.window = places.shape
        order, inside = places.flatten(), places.flatten() >= 0
        inverse = torch.empty(self.positions, dtype=torch.int64, device="cpu")
        inverse[order[inside]] = torch.arange(len(order), device="cpu")[inside]
        mask = None if inside.all() else torch.where(places < 0, MASKED, 0.0)[:, None]
        # What stands in for padding does not matter: nothing looks at it, and nothing reads it.
        self.register_buffer("order", order.clamp(min=0), persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def update(self, x: Tensor) -> Tensor:
        """See `Attention`."""
        query = self.norm(self._split(self.query(x)))
        key = self.norm(self._split(self.key(x)))
        mixed = attend(query, key, self._split(self.value(x)), self.channels**-0.5, self.mask)
        mixed = mixed.reshape(-1, self.windows * self.window, self.channels)
        output: Tensor = self.output(self._map(mixed.index_select(1, self.inverse)))
        return output

    @property
    def mixing_macs(self) -> int:
        """See `Attention`."""
        return 2 * self.windows * self.window**2 * self.channels

    @property
    def macs(self) -> int:
        """See `Attention`."""
        return 4 * self.positions * self.channels**2 + self.mixing_macs

    def _split(self, x: Tensor) -> Tensor:
        """Cut a map (B, C, H, W) into windows (B, windows, n, C)."""
        rows = self._rows(x).index_select(1, self.order)
        return rows.reshape(-1, self.windows, self.window, self.channels)


class StridedAttention(ProjectedAttention):
    """Attention of every position to those of every s-th row and column, from the first on.

    The fixed grid of the spatial reduction of PVT (Wang et al., ICCV 2021), by taking positions
    instead of pooling them.

    Cost, in multiplications: 2NC^2 + 2MC^2 for the projections and 2NMC for scores and sums, with
    M = ceil(H / s) ceil(W / s).

    Args:
        channels: C.
        size: H and W.
        stride: s.
        gate: g.
    """

    def __init__(self, channels: int, size: Size, stride: int, gate: Gate = "learned") -> None:
        super().__init__(channels, size, gate)
        self.stride = stride
        self.keys = -(-size[0] // stride) * -(-size[1] // stride)

    def update(self, x: Tensor) -> Tensor:
        """See `Attention`."""
        grid = x[:, :, :: self.stride, :: self.stride]
        query = self.norm(self._rows(self.query(x)))
        key = self.norm(self._grid_rows(self.key(grid)))
        value = self._grid_rows(self.value(grid))
        mixed = attend(query, key, value, self.channels**-0.5)
        output: Tensor = self.output(self._map(mixed))
        return output

    @property
    def mixing_macs(self) -> int:
        """See `Attention`."""
        return 2 * self.positions * self.keys * self.channels

    @property
    def macs(self) -> int:
        """See `Attention`."""
        return 2 * (self.positions + self.keys) * self.channels**2 + self.mixing_macs

    def _grid_rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.channels, self.keys).transpose(1, 2)


class HashedAttention(ProjectedAttention):
    """Attention among positions whose features hash alike (Kitaev et al., Reformer, ICLR 2020).

    One round of hashing of x itself: with r = ceil(b / 2) fixed random directions R, a position's
    bucket is the argmax of [xR; -xR] (section 2, "LSH attention"). Positions are sorted by bucket,
    those of one bucket by their place on the map, and the sorted row is cut into chunks of
    n = ceil(N / b) positions, at most b of them, within which all attend to all. Other than in the
    paper, queries and keys have projections of their own, positions of other buckets in the same
    chunk are attended to, and the chunk before is not. The hash gets no gradient.

    Sorting is a TopK of N integer keys, `bucket N + place`, no two of which are equal. As numbers
    of half precision they would be rounded, and buckets mixed.

    Cost, in multiplications: 4NC^2 for the projections, NCr for the hash, and 2PnC for scores and
    sums, with P = n ceil(N / n) positions after padding.

    Args:
        channels: C.
        size: H and W.
        buckets: b.
        gate: g.

    Raises:
        ArchitectureError: more buckets than positions, or more positions than TopK of TensorRT
            takes.
    """

    directions: Tensor
    places: Tensor
    mask: Tensor | None

    def __init__(self, channels: int, size: Size, buckets: int, gate: Gate = "learned") -> None:
        super().__init__(channels, size, gate)
        if not buckets <= self.positions <= LARGEST_TOPK:
            raise ArchitectureError(
                f"Hashed attention sorts between {buckets} (its buckets) and {LARGEST_TOPK} "
                f"positions, and a {size[0]}x{size[1]} map has {self.positions}.",
                "Choose fewer buckets, or place it at a deeper level.",
            )
        self.chunk = -(-self.positions // buckets)
        self.chunks = -(-self.positions // self.chunk)
        generator = torch.Generator("cpu").manual_seed(_SEED)
        directions = torch.randn(channels, -(-buckets // 2), generator=generator, device="cpu")
        self.register_buffer("directions", directions, persistent=False)
        self.register_buffer("places", torch.arange(self.positions, device="cpu"), persistent=False)
        mask = None
        if self._missing:
            mask = torch.zeros(self.chunks * self.chunk, device="cpu")
            mask[self.positions :] = MASKED
            mask = mask.reshape(self.chunks, 1, self.chunk)
        self.register_buffer("mask", mask, persistent=False)

    def update(self, x: Tensor) -> Tensor:
        """See `Attention`."""
        order = self._order(x)
        # The last chunk is filled up with positions that it masks as keys and drops as queries.
        filled = torch.cat([order, order[:, : self._missing]], 1) if self._missing else order
        query = self.norm(self._chunked(self.query(x), filled))
        key = self.norm(self._chunked(self.key(x), filled))
        value = self._chunked(self.value(x), filled)
        mixed = attend(query, key, value, self.channels**-0.5, self.mask)
        mixed = mixed.reshape(-1, self.chunks * self.chunk, self.channels)
        # A permutation has every index once, so the tensor scattered into is overwritten entirely.
        inverse = order.scatter(1, order, self.places + 0 * order)
        output: Tensor = self.output(self._map(take(mixed, inverse, self.channels)))
        return output

    @property
    def mixing_macs(self) -> int:
        """See `Attention`."""
        return 2 * self.chunks * self.chunk**2 * self.channels

    @property
    def macs(self) -> int:
        """See `Attention`."""
        hashing = self.positions * self.directions.numel()
        return 4 * self.positions * self.channels**2 + hashing + self.mixing_macs

    def _order(self, x: Tensor) -> Tensor:
        """Return the positions (B, N), sorted by bucket and then by place."""
        rotated = self._rows(x.detach()) @ self.directions.to(x.dtype)
        buckets = torch.cat([rotated, -rotated], 2).argmax(2)
        keys = buckets * self.positions + self.places
        return keys.topk(self.positions, dim=1, largest=False).indices

    @property
    def _missing(self) -> int:
        return self.chunks * self.chunk - self.positions

    def _chunked(self, x: Tensor, filled: Tensor) -> Tensor:
        """Cut a map into chunks (B, chunks, n, C), of its positions in that order (B, P)."""
        rows = take(self._rows(x), filled, self.channels)
        return rows.reshape(-1, self.chunks, self.chunk, self.channels)


def _windows(size: Size, window: Size) -> Tensor:
    """Return the positions of each window, (windows, n) int64, and -1 where it has padding."""
    down, across = -(-size[0] // window[0]), -(-size[1] // window[1])
    places = torch.arange(size[0] * size[1], device="cpu").reshape(size)
    missing = (0, across * window[1] - size[1], 0, down * window[0] - size[0])
    places = F.pad(places, missing, value=-1).reshape(down, window[0], across, window[1])
    return places.transpose(1, 2).reshape(down * across, -1)
