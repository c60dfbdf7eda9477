from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.accuracy.checkpoint import load_checkpoint, save_checkpoint
from nas.accuracy.optimization import Optimization
from nas.accuracy.recipe import Recipe
from nas.errors import TrainingError

RECIPE = Recipe(iterations=1000, warmup=0.0, clip=1e6)


def _network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def _backward(network: nn.Linear, one: Optimization, factor: float = 1.0) -> float:
    network.zero_grad()
    loss = network(torch.ones(4, 3)).square().mean() * factor
    one.scaler.scale(loss).backward()
    return float(loss.detach())


def test_update__scaled_is_the_same_update() -> None:
    networks = [_network(), _network()]
    for network, scaled in zip(networks, (False, True), strict=True):
        one = Optimization(network, RECIPE, scaled=scaled)
        for step in range(5):
            one.update(step, _backward(network, one))
        assert one.counters.updates == 5
    torch.testing.assert_close(networks[0].weight, networks[1].weight)


def test_update__overflow_is_no_bad_step() -> None:
    network = _network()
    one = Optimization(network, RECIPE, scaled=True)
    before = network.weight.detach().clone()
    scale = one.scaler.get_scale()
    # A finite loss whose gradient is finite too, until it is multiplied.
    loss = _backward(network, one, factor=100 * torch.finfo(torch.float32).max / scale)
    assert math.isfinite(loss)
    assert one.update(0, loss) == ""
    assert torch.equal(network.weight, before)
    assert (one.counters.overflows, one.counters.skipped, one.counters.updates) == (1, 0, 0)
    assert one.scaler.get_scale() == scale / 2
    one.update(1, _backward(network, one))
    assert one.counters.updates == 1
    assert not torch.equal(network.weight, before)


def test_update__gradient_that_no_scale_makes_finite_ends_as_an_error() -> None:
    network = _network()
    one = Optimization(network, RECIPE, scaled=True)

    def broken_step(step: int) -> None:
        _backward(network, one)
        assert network.weight.grad is not None
        network.weight.grad.fill_(math.nan)
        one.update(step, 1.0)

    for step in range(16 + 19):
        broken_step(step)
    with pytest.raises(TrainingError, match="not finite in 20 of 36 steps"):
        broken_step(35)
    assert one.counters.overflows == 16  # from 2^16 down to 1


def test_update__bad_steps_halve_the_rate_for_good(tmp_path: Path) -> None:
    network = _network()
    one = Optimization(network, RECIPE, scaled=False)
    notes = [one.update(step, math.nan) for step in range(5) if _backward(network, one)]
    assert notes[:4] == [""] * 4
    assert "5 steps in a row" in notes[4]
    assert "0.5 of the planned learning rate" in notes[4]
    assert one.learning_rate(7) == 0.5 * RECIPE.learning_rate(7)

    save_checkpoint(
        tmp_path / "at", "x", one.counters, network, one.average, one.optimizer, one.scaler
    )
    other = Optimization(network, RECIPE, scaled=False)
    other.counters = load_checkpoint(
        tmp_path / "at", "x", network, other.average, other.optimizer, other.scaler
    )
    other.update(5, _backward(network, other))
    rates = [group["lr"] for group in other.optimizer.param_groups]
    assert rates == [0.5 * RECIPE.learning_rate(5)] * 2


def test_checkpoint__keeps_the_multiplier(tmp_path: Path) -> None:
    network = _network()
    one = Optimization(network, dataclasses.replace(RECIPE, amp="fp16"), scaled=True)
    for step in range(2):
        _backward(network, one)
        assert network.weight.grad is not None
        network.weight.grad.fill_(math.inf)
        one.update(step, 1.0)
    one.update(2, _backward(network, one))
    save_checkpoint(
        tmp_path / "at", "x", one.counters, network, one.average, one.optimizer, one.scaler
    )
    other = Optimization(network, RECIPE, scaled=True)
    other.counters = load_checkpoint(
        tmp_path / "at", "x", network, other.average, other.optimizer, other.scaler
    )
    assert other.scaler.state_dict() == one.scaler.state_dict()
    assert other.scaler.get_scale() == 2.0**14
    assert other.counters == one.counters
