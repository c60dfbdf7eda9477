from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nas.errors import ArchitectureError
from nas.model.blocks.convolution import ConvBN, QARepVGG, RepVGG, Unit, strided

UNITS = [ConvBN, QARepVGG, RepVGG]
Randomize = Callable[..., None]


@pytest.mark.parametrize("act", ["relu", "silu"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("out_channels", [8, 12])  # 8 has an identity at stride 1, 12 has none
@pytest.mark.parametrize("unit", UNITS)
def test_fuse__equals_the_branches(
    unit: type[Unit], out_channels: int, groups: int, stride: int, act: str, randomize: Randomize
) -> None:
    block = unit((8,), (out_channels,), 3, stride, groups=groups, act=act).eval()
    randomize(block, seed=out_channels + groups)
    x = torch.randn(2, 8, 13, 10, generator=torch.Generator().manual_seed(1))
    fused = block.fuse()
    expected = block(x)
    error = (fused(x) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
    assert [type(child) for child in fused] == [nn.Conv2d, type(block.act)]
    assert fused.conv.kernel_size == (3, 3)


@pytest.mark.parametrize("unit", UNITS)
def test_fuse__in_float64_the_algebra_is_exact(unit: type[Unit], randomize: Randomize) -> None:
    block = unit((6, 2), (8,), groups=2).eval().double()
    randomize(block)
    x = torch.randn(1, 8, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block.fuse()(x), block(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (5, 1), (6, 2)])
def test_fuse__plain_units_of_other_kernels(kernel: int, stride: int, randomize: Randomize) -> None:
    block = ConvBN((4,), (6,), kernel, stride).eval()
    randomize(block)
    x = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block.fuse()(x), block(x), rtol=1e-5, atol=1e-5)


def test_fuse__leaves_the_unit_alone(randomize: Randomize) -> None:
    block = QARepVGG((4,), (4,)).eval()
    randomize(block)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    with torch.no_grad():
        block.fuse().conv.weight.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())


def test_qarepvgg__is_the_published_sum(randomize: Randomize) -> None:
    block = QARepVGG((5,), (5,), act="silu").eval()
    randomize(block)
    x = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(1))
    total = block.bn(torch.conv2d(x, block.conv.weight, padding=1))
    total = total + torch.conv2d(x, block.conv1.weight) + x
    torch.testing.assert_close(block(x), nn.functional.silu(block.post_bn(total)))
    biased = [name for name, layer in block.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert biased == ["bn", "post_bn"]
    assert block.conv1.bias is None


@pytest.mark.parametrize("unit", [QARepVGG, RepVGG])
def test_units__channels_last_training_step_at_stride_2(unit: type[Unit]) -> None:
    block = unit((3,), (8,), 3, 2)
    for _ in range(5):
        images = torch.rand(32, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        block(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_strided__a_6x6_re_parameterized_stem_is_an_error() -> None:
    with pytest.raises(ArchitectureError, match="qarepvgg convolution is 3x3, got 6x6"):
        strided("qarepvgg", 3, 8, 6, "relu")
    assert strided("conv", 3, 8, 6, "relu")(torch.rand(1, 3, 32, 64)).shape == (1, 8, 16, 32)
