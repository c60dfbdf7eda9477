"""The exponential moving average of a network's weights: what training delivers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Averages the parameters of a network.

    The decay after t updates is `decay * (1 - exp(-t / ramp))`: early on the average follows the
    weights, which are not yet worth remembering.

    Args:
        network: whose weights are averaged.
        decay: reached in the end, below 1.
        ramp: updates over which the decay grows.
    """

    def __init__(self, network: nn.Module, decay: float, ramp: float) -> None:
        self.decay = decay
        self.ramp = ramp
        self.tensors = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Move towards the weights of `network`, after its update number `updates` (from 1)."""
        decay = self.decay * (1 - math.exp(-updates / self.ramp))
        torch._foreach_lerp_(  # one call for hundreds of small tensors
            list(self.tensors.values()), list(network.parameters()), 1 - decay
        )

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Copy the average into the parameters of `network`."""
        for name, parameter in network.named_parameters():
            parameter.copy_(self.tensors[name])

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from averages that were saved."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
