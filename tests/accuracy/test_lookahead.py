from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nas.accuracy.lookahead import Lookahead
from nas.errors import InputError


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def _adamw(network: nn.Module) -> torch.optim.Optimizer:
    first, *others = network.parameters()
    return torch.optim.AdamW([{"params": [first]}, {"params": others}], lr=0.1)


def _advance(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        network(inputs).square().sum().backward()
        optimizer.step()


def _weights(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_lookahead__off_is_the_optimizer_itself():
    optimizer = _adamw(_network())
    assert Lookahead().around(optimizer) is optimizer


def test_lookahead__follows_algorithm_1():
    plain, ahead = _network(), _network()
    start = _weights(plain)
    fast = _adamw(plain)
    slow = Lookahead(3, 0.5).around(_adamw(ahead))
    _advance(plain, fast, range(2))
    _advance(ahead, slow, range(2))
    assert all(map(torch.equal, _weights(plain), _weights(ahead)))
    _advance(plain, fast, range(2, 3))
    _advance(ahead, slow, range(2, 3))
    for before, after, found in zip(start, _weights(plain), _weights(ahead), strict=True):
        assert torch.allclose(found, before + 0.5 * (after - before), atol=1e-6)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 7])
def test_lookahead__a_restored_state_goes_on_as_if_nothing_had_been(stop: int):
    whole = _network()
    optimizer = Lookahead(3, 0.5).around(_adamw(whole))
    _advance(whole, optimizer, range(stop))
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(whole.state_dict())
    assert all(
        isinstance(each, torch.Tensor) for one in state["state"].values() for each in one.values()
    )
    _advance(whole, optimizer, range(stop, 10))
    restored = _network()
    again = Lookahead(3, 0.5).around(_adamw(restored))
    restored.load_state_dict(weights)
    again.load_state_dict(state)
    _advance(restored, again, range(stop, 10))
    assert all(map(torch.equal, _weights(whole), _weights(restored)))


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"share": 0.0}, {"share": 1.5}])
def test_lookahead__what_cannot_be(wrong: dict[str, float]):
    with pytest.raises(InputError, match="Lookahead takes"):
        Lookahead(**wrong)
