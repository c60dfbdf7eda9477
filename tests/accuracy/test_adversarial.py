from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.accuracy.adversarial import Adversarial
from nas.errors import InputError


@given(st.floats(0.001, 0.2), st.integers(1, 6), st.floats(0.2, 1))
def test_adversarial__moves_by_epsilon_towards_more_loss(epsilon: float, count: int, share: float):
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, 2, 2, generator=generator) * 0.5 + 0.25
    wanted = torch.rand(images.shape, generator=generator)
    before = images.clone()

    def loss(seen: torch.Tensor) -> torch.Tensor:
        return (seen - wanted).square().sum()

    changed = Adversarial(epsilon, share)(images, loss)
    moved = round(share * count)
    assert torch.equal(images, before)
    assert torch.equal(changed[moved:], images[moved:])
    away = (images - wanted)[:moved].sign()
    expected = (images[:moved] + epsilon * away).clamp(0, 1)
    assert torch.allclose(changed[:moved], expected)
    assert loss(changed) >= loss(images)


def test_adversarial__leaves_no_gradient_in_the_network():
    layer = torch.nn.Conv2d(3, 1, 1)
    Adversarial(0.01)(torch.rand(2, 3, 4, 4), lambda seen: layer(seen).sum())
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("wrong", [{"epsilon": -0.1}, {"epsilon": 2.0}, {"share": 0.0}])
def test_adversarial__what_cannot_be(wrong: dict[str, float]):
    with pytest.raises(InputError, match="Adversarial training takes"):
        Adversarial(**wrong)
