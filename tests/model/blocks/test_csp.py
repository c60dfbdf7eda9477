from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nas import plugins
from nas.model.blocks.csp import C2f, ConvCSP, QARepVGGCSP
from nas.space.architecture import Fusion

Describe = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("name", plugins.names("blocks"))
def test_blocks__have_one_constructor(
    name: str, everything: bool, shortcut: bool, fusion: Describe
) -> None:
    options = {"concat_intermediates": everything, "shortcut": shortcut}
    spec = Fusion(**fusion(10, 4, 3, block=name, **options))
    block = plugins.load("blocks", name)((5, 3), spec, "silu")
    assert block(torch.rand(2, 8, 6, 4)).shape == (2, 10, 6, 4)
    assert any("alpha" in key for key, _ in block.named_parameters()) == (
        shortcut and name != "c2f"
    )


@pytest.mark.parametrize("everything", [True, False])
def test_csp__is_the_published_graph(
    everything: bool, fusion: Describe, randomize: Callable[..., None]
) -> None:
    spec = Fusion(**fusion(6, 4, 2, concat_intermediates=everything))
    block = QARepVGGCSP((8,), spec, "relu").eval()
    randomize(block)
    x = torch.randn(1, 8, 5, 5)
    first, bypass = block.conv1(x), block.conv2(x)
    one, two = block.bottlenecks
    middle = one.alpha.factor * first + one.unit2(one.unit1(first))
    last = two.alpha.factor * middle + two.unit2(two.unit1(middle))
    parts = [bypass, first, middle, last] if everything else [bypass, last]
    torch.testing.assert_close(block(x), block.conv3(torch.cat(parts, 1)))


def test_csp__modes_of_concatenation_share_bottlenecks_only(fusion: Describe) -> None:
    names = []
    for everything in (True, False):
        spec = Fusion(**fusion(6, 4, 2, concat_intermediates=everything))
        names.append({name for name, _ in ConvCSP((8,), spec, "relu").named_parameters()})
    assert {name.split(".")[0] for name in names[0] & names[1]} == {"conv1", "conv2", "bottlenecks"}


def test_c2f__is_the_published_graph(fusion: Describe, randomize: Callable[..., None]) -> None:
    block = C2f((8,), Fusion(**fusion(6, 4, 2, block="c2f")), "silu").eval()
    randomize(block)
    x = torch.randn(1, 8, 5, 5)
    first, second = block.conv1(x)[:, :4], block.conv1(x)[:, 4:]
    third = second + block.bottlenecks[0](second)
    fourth = third + block.bottlenecks[1](third)
    expected = block.conv2(torch.cat([first, second, third, fourth], 1))
    torch.testing.assert_close(block(x), expected)
    assert block.conv2.conv.in_layout == (4, 4, 4, 4)
