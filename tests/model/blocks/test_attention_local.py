from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from nas.errors import ArchitectureError
from nas.model.blocks.attention_base import ProjectedAttention
from nas.model.blocks.attention_local import HashedAttention, StridedAttention, WindowedAttention

SIZES = ((17, 30), (8, 8), (3, 11))
Size = tuple[int, int]


def _ready(block: ProjectedAttention) -> ProjectedAttention:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        block.gate.factor.fill_(0.7)
        block.norm.weight.copy_(0.5 + torch.rand(block.channels, generator=generator))
        block.norm.bias.copy_(torch.rand(block.channels, generator=generator) - 0.5)
    return block


def _image(size: Size, channels: int = 6) -> Tensor:
    return torch.randn(channels, *size, generator=torch.Generator().manual_seed(1))


def _reference(block: ProjectedAttention, image: Tensor, looks_at: list[list[int]]) -> Tensor:
    """The definition, one position at a time; each looks at the listed ones."""
    w_q, w_k, w_v, w_o = (
        conv.weight[:, :, 0, 0] for conv in (block.query, block.key, block.value, block.output)
    )
    positions = image.flatten(1).T

    def normalised(row: Tensor) -> Tensor:
        scaled = (row - row.mean()) / (row.var(correction=0) + block.norm.eps).sqrt()
        return scaled * block.norm.weight + block.norm.bias

    keys = torch.stack([normalised(w_k @ row) for row in positions])
    values = positions @ w_v.T
    rows = []
    for row, others in zip(positions, looks_at, strict=True):
        logits = keys[others] @ normalised(w_q @ row) / math.sqrt(len(image))
        weights = logits.exp() / logits.exp().sum()
        rows.append(row + block.gate.factor * (w_o @ (weights @ values[others])))
    return torch.stack(rows, 1).reshape(image.shape)


def _check(block: ProjectedAttention, looks_at: list[list[int]]) -> None:
    image = _image(block.size, block.channels)
    with torch.no_grad():
        expected = _reference(block, image, looks_at)
        torch.testing.assert_close(block(image[None])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [2, 5, 8, 256])
def test_windowed__equals_the_definition(size: Size, window: int) -> None:
    places = [(i, j) for i in range(size[0]) for j in range(size[1])]
    looks_at = [
        [
            other
            for other, (k, m) in enumerate(places)
            if (k // window, m // window) == (i // window, j // window)
        ]
        for i, j in places
    ]
    _check(_ready(WindowedAttention(6, size, window)), looks_at)


def test_windowed__pads_nothing_that_it_need_not() -> None:
    assert WindowedAttention(4, (8, 12), 4).mask is None
    whole = WindowedAttention(4, (5, 3), 64)
    assert whole.mask is None
    assert whole.mixing_macs == 2 * 15**2 * 4
    padded = WindowedAttention(4, (5, 3), 4)
    assert padded.mixing_macs == 2 * (8 * 3) * (4 * 3) * 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [2, 3, 64])
def test_strided__equals_the_definition(size: Size, stride: int) -> None:
    grid = [
        i * size[1] + j
        for i in range(size[0])
        for j in range(size[1])
        if i % stride == 0 and j % stride == 0
    ]
    _check(_ready(StridedAttention(6, size, stride)), [grid] * math.prod(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("buckets", [2, 5, 12, 33])
def test_hashed__equals_the_definition(size: Size, buckets: int) -> None:
    block = HashedAttention(6, size, buckets)
    positions = _image(size).flatten(1).T
    numbers = []
    for row in positions:
        turned = [float(row @ direction) for direction in block.directions.T]
        both = turned + [-value for value in turned]
        numbers.append(both.index(max(both)))
    order = sorted(range(len(numbers)), key=lambda i: (numbers[i], i))
    chunk = math.ceil(len(order) / buckets)
    looks_at: list[list[int]] = [[] for _ in order]
    for start in range(0, len(order), chunk):
        for position in order[start : start + chunk]:
            looks_at[position] = order[start : start + chunk]
    _check(_ready(block), looks_at)


def test_hashed__directions_are_the_same_everywhere() -> None:
    first, again = HashedAttention(6, (4, 5), 7), HashedAttention(6, (8, 8), 7)
    assert torch.equal(first.directions, again.directions)
    assert first.directions.shape == (6, 4)
    assert not {"directions", "places"} & first.state_dict().keys()


def test_hashed__keeps_alike_features_together() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 16, generator=generator)
    shuffled = torch.randperm(64, generator=generator) % 4
    image = kinds[shuffled] + 0.01 * torch.randn(64, 16, generator=generator)
    block = HashedAttention(16, (8, 8), 16)
    order = block._order(image.T.reshape(1, 16, 8, 8))[0]
    sorted_kinds = shuffled[order].tolist()
    changes = sum(a != b for a, b in itertools.pairwise(sorted_kinds))
    assert changes == 3


def test_hashed__what_engines_cannot_sort() -> None:
    with pytest.raises(ArchitectureError, match="62x62 map has 3844"):
        HashedAttention(4, (62, 62), 8)
    with pytest.raises(ArchitectureError, match="between 21"):
        HashedAttention(4, (4, 5), 21)
