from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import ArchitectureError
from nas.model.blocks.layers import (
    BatchNorm2d,
    Choice,
    Conv2d,
    ConvTranspose2d,
    LayerNorm,
    Scale,
    Shareable,
    part,
    reusing,
    widest,
)

layouts = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@given(layouts, layouts)
def test_widest__covers_both_and_no_more(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    wide = widest(first, second)
    assert len(wide) == max(len(first), len(second))
    assert widest(wide, first) == widest(wide, second) == wide
    assert all(width in first[i : i + 1] + second[i : i + 1] for i, width in enumerate(wide))


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (Conv2d((2, 3), (4,), 3, bias=True), Conv2d((1, 5, 2), (3, 3), 3, bias=True)),
        (ConvTranspose2d((2,), (3,)), ConvTranspose2d((3,), (2,))),
        (BatchNorm2d((2, 2)), BatchNorm2d((3,))),
        (LayerNorm((4,)), LayerNorm((2,))),
        (Scale(0.5), Scale(0.5)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_widened__says_the_layout_of_every_parameter(narrow: Shareable, wide: Shareable) -> None:
    both = narrow.widened(wide)
    described = both.layouts()
    parameters = dict(both.named_parameters())  # type: ignore[attr-defined]
    assert described.keys() == parameters.keys()
    for name, dimensions in described.items():
        sizes = tuple(parameters[name].shape)
        assert tuple(sum(layout) for layout in dimensions) == sizes[: len(dimensions)]
        for own in (narrow.layouts()[name], wide.layouts()[name]):
            assert all(widest(a, b) == b for a, b in zip(own, dimensions, strict=True))


@pytest.mark.parametrize(
    "other",
    [Conv2d((2,), (2,), 3), Conv2d((2,), (2,), stride=2), Conv2d((2,), (2,), bias=True)],
    ids=["kernel", "stride", "bias"],
)
def test_widened__different_convolutions_cannot_share(other: Conv2d) -> None:
    with pytest.raises(ArchitectureError, match="cannot share"):
        Conv2d((2,), (2,)).widened(other)


def test_conv2d__strided_1x1_in_channels_last_survives_backward() -> None:
    # torch 2.13 crashes here when the stride is left to conv2d.
    conv = Conv2d((3,), (8,), 1, 2)
    images = torch.rand(32, 3, 128, 128, requires_grad=True)
    for _ in range(20):
        conv(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        torch.rand(1000)
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.sampled_from([1, 2]))
def test_conv2d__equals_torch(height: int, width: int, kernel: int, stride: int) -> None:
    conv = Conv2d((2, 1), (4,), kernel, stride)
    x = torch.rand(1, 3, height, width)
    expected = torch.conv2d(x, conv.weight, None, stride, kernel // 2)
    torch.testing.assert_close(conv(x), expected)
    assert conv(x).shape[2:] == (-(-height // stride), -(-width // stride))


def test_choice__names_its_module() -> None:
    choice = Choice("conv", Conv2d((1,), (1,)))
    assert [name for name, _ in choice.named_parameters()] == ["conv.weight"]


def test_part__is_reused_at_its_place_within_the_context_only() -> None:
    with reusing({}):
        first = part("here", Scale, 1.0)
        assert part("here", Scale, 1.0) is first
        assert part("there", Scale, 1.0) is not first
        assert part("here", Scale, 2.0).initial == 2.0
    assert part("here", Scale, 1.0) is not first
