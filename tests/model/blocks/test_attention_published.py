from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.model.blocks.attention_published import (
    EncoderLayer,
    PartialAttention,
    _embedding,
    _number_of_heads,
)
from nas.model.blocks.convolution import ConvBN

Size = tuple[int, int]


def _image(channels: int, size: Size) -> Tensor:
    return torch.randn(channels, *size, generator=torch.Generator().manual_seed(1))


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain attention of one head: rows (N, d), (N, d), (N, e) -> (N, e)."""
    rows = []
    for one in query:
        logits = torch.stack([one @ other for other in key]) / math.sqrt(len(one))
        weights = logits.exp() / logits.exp().sum()
        rows.append(weights @ value)
    return torch.stack(rows)


@pytest.mark.parametrize(("channels", "size"), [(128, (3, 5)), (96, (4, 4)), (12, (17, 30))])
def test_aifi__equals_torchs_attention_in_a_post_norm_layer(channels: int, size: Size) -> None:
    torch.manual_seed(0)
    block = EncoderLayer(channels, size, "none").eval()
    for norm in (block.norm1, block.norm2):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    attention = nn.MultiheadAttention(channels, max(1, channels // 32), batch_first=True)
    with torch.no_grad():
        projections = (block.query, block.key, block.value)
        attention.in_proj_weight.copy_(torch.cat([one.weight[:, :, 0, 0] for one in projections]))
        attention.in_proj_bias.copy_(torch.cat([one.bias for one in projections]))
        attention.out_proj.weight.copy_(block.output.weight[:, :, 0, 0])
        attention.out_proj.bias.copy_(block.output.bias)
        rows = _image(channels, size).flatten(1).T[None]
        placed = rows + _sine_cosine(channels, size)[None]
        z = F.layer_norm(
            rows + attention(placed, placed, rows)[0],
            (channels,),
            block.norm1.weight,
            block.norm1.bias,
        )
        hidden = F.gelu(F.linear(z, block.expand.weight[:, :, 0, 0], block.expand.bias))
        fed = F.linear(hidden, block.project.weight[:, :, 0, 0], block.project.bias)
        expected = F.layer_norm(z + fed, (channels,), block.norm2.weight, block.norm2.bias)
        got = block(rows.transpose(1, 2).reshape(1, channels, *size)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def _sine_cosine(channels: int, size: Size) -> Tensor:
    """Of every position, number by number."""
    quarter = channels // 4
    rows = []
    for i in range(size[0]):
        for j in range(size[1]):
            frequencies = [10_000 ** (-q / quarter) for q in range(quarter)]
            rows.append(
                [
                    function(place * frequency)
                    for place in (j, i)
                    for function in (math.sin, math.cos)
                    for frequency in frequencies
                ]
            )
    return torch.tensor(rows)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 7, 8, 30])
def test_aifi__embeds_any_number_of_channels(channels: int) -> None:
    columns, rows = _embedding(channels, (17, 30))
    whole = _sine_cosine(4 * math.ceil(channels / 4), (17, 30))[:, :channels]
    got = (columns + rows)[0].flatten(1).T
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "size"), [(256, (3, 5)), (10, (5, 7)), (7, (2, 3))])
def test_psa__equals_the_definition(
    channels: int, size: Size, randomize: Callable[..., None]
) -> None:
    torch.manual_seed(0)
    block = PartialAttention(channels, size, "none").eval()
    randomize(block)
    image = _image(channels, size)
    with torch.no_grad():
        first = F.silu(_unit(block.split, image))
        kept, z = first[: channels // 2], first[channels // 2 :]
        c, heads = channels // 2, max(1, channels // 128)
        thin, wide = max(1, c // heads // 2), c // heads
        qkv = _unit(block.qkv, z)
        query, key, value = qkv.split([heads * thin, heads * thin, c])
        mixed = torch.cat(
            [
                _attended(
                    query[h * thin : (h + 1) * thin].flatten(1).T,
                    key[h * thin : (h + 1) * thin].flatten(1).T,
                    value[h * wide : (h + 1) * wide].flatten(1).T,
                ).T.reshape(wide, *size)
                for h in range(heads)
            ]
        )
        z = z + _unit(block.output, mixed + _unit(block.place, value))
        z = z + _unit(block.project, F.silu(_unit(block.expand, z)))
        expected = F.silu(_unit(block.merge, torch.cat([kept, z])))
        torch.testing.assert_close(block(image[None])[0], expected, rtol=1e-3, atol=1e-4)


def _unit(unit: ConvBN, image: Tensor) -> Tensor:
    """Convolution and normalisation without activation, tap by tap."""
    weight, side = unit.conv.weight, unit.kernel
    padded = F.pad(image, [side // 2] * 4)
    taps = []
    for i in range(side):
        for j in range(side):
            shifted = padded[:, i : i + image.shape[1], j : j + image.shape[2]]
            if unit.groups > 1:
                taps.append(weight[:, 0, i, j, None, None] * shifted)
            else:
                taps.append(torch.einsum("oc,chw->ohw", weight[:, :, i, j], shifted))
    bn = unit.bn
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    total = torch.stack(taps).sum(0)
    return (total - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]


def test_psa__multiplications_follow_the_law_of_the_docstring() -> None:
    block = PartialAttention(256, (20, 20))
    n, c = 400, 128
    assert block.macs == n * (4 * 256 * c + 7 * c**2 + 9 * c) + 3 * n**2 * c // 2


@pytest.mark.parametrize(
    ("channels", "width", "heads"),
    [(256, 32, 8), (128, 64, 2), (100, 32, 2), (20, 32, 1), (97, 32, 1), (1, 64, 1)],
)
def test_heads__are_equal_and_wide_enough(channels: int, width: int, heads: int) -> None:
    assert _number_of_heads(channels, width) == heads


@pytest.mark.parametrize("family", [EncoderLayer, PartialAttention])
def test_gate__none_is_the_published_block(
    family: type[EncoderLayer | PartialAttention],
) -> None:
    block = family(8, (4, 5), "none").eval()
    x = _image(8, (4, 5))[None]
    assert torch.equal(block(x), block.block(x))
