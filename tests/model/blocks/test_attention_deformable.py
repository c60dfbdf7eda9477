from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from nas.model.blocks.attention_deformable import DeformableAttention, _neighbours

Size = tuple[int, int]


def _block(size: Size, points: int, spread: float) -> DeformableAttention:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        block = DeformableAttention(6, size, points)
        with torch.no_grad():
            block.gate.factor.fill_(0.7)
            block.offsets.weight.normal_(0, spread)
            block.offsets.bias.normal_(0, spread)
            block.weights.weight.normal_()
            block.weights.bias.normal_()
    return block


def _reference(block: DeformableAttention, x: Tensor) -> Tensor:
    """The same by `grid_sample`, one point at a time."""
    height, width = block.size
    value = block.value(x)
    offsets = block.offsets(x).reshape(len(x), block.points, 2, height, width)
    weights = block.weights(x).softmax(1)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mixed = torch.zeros_like(value)
    for point in range(block.points):
        across = (columns + offsets[:, point, 0] + 0.5) * 2 / width - 1
        down = (rows + offsets[:, point, 1] + 0.5) * 2 / height - 1
        grid = torch.stack([across, down], -1)
        found = F.grid_sample(value, grid, "bilinear", "zeros", align_corners=False)
        mixed = mixed + weights[:, point : point + 1] * found
    return x + block.gate.factor * block.output(mixed)


@pytest.mark.parametrize("size", [(17, 30), (5, 4), (1, 7)])
@pytest.mark.parametrize("points", [1, 4])
@pytest.mark.parametrize("spread", [0.2, 4.0])
def test_deformable__equals_grid_sample_with_its_gradients(
    size: Size, points: int, spread: float
) -> None:
    block = _block(size, points, spread).double()
    x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(1)).double()
    gradients = []
    for function in (block, lambda x: _reference(block, x)):
        block.zero_grad()
        images = x.clone().requires_grad_()
        output = function(images)
        (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
        parameters = [(name, p.grad.clone()) for name, p in block.named_parameters()]
        gradients.append((output.detach(), images.grad, parameters))
    (first, at_input, own), (expected, at_images, theirs) = gradients
    # Offsets are computed in float32, whatever the type of the network.
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at_input, at_images, rtol=1e-3, atol=1e-4)
    for (name, gradient), (_, wanted) in zip(own, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-3, msg=name)


@settings(deadline=None, max_examples=200)
@given(st.floats(-1e6, 1e6) | st.floats(-12, 12), st.integers(1, 9), st.data())
def test_neighbours__interpolate_and_are_zero_beyond_the_map(
    shift: float, length: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, length - 1))
    (before, after), weights = _neighbours(
        torch.tensor(start), torch.tensor(shift, dtype=torch.float64), length
    )
    place = start + shift
    line = torch.arange(1.0, length + 1)
    got = weights[0] * line[int(before)] + weights[1] * line[int(after)]
    padded = {i: float(value) for i, value in enumerate(line)}
    low = math.floor(place)
    share = place - low
    expected = (1 - share) * padded.get(low, 0.0) + share * padded.get(low + 1, 0.0)
    assert float(got) == pytest.approx(expected, abs=1e-4)


def test_deformable__starts_by_looking_around() -> None:
    fewer, more = DeformableAttention(4, (9, 9), 3), DeformableAttention(4, (9, 9), 8)
    offsets = more.offsets(torch.randn(1, 4, 9, 9))[0, :, 4, 4].reshape(8, 2)
    torch.testing.assert_close(offsets.norm(dim=1), torch.full((8,), 2.0))
    assert len({tuple(row) for row in offsets.round(decimals=3).tolist()}) == 8
    assert torch.equal(fewer.offsets.bias, more.offsets.bias[:6])
    shares = more.weights(torch.randn(1, 4, 9, 9)).softmax(1)
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 8))
