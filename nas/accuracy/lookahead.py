"""Lookahead: fast weights that explore, and slow weights that follow them every few steps.

After every k updates of the optimiser (the fast weights), the slow weights move a share of the way
to them, and the fast weights go on from there (Zhang et al., NeurIPS 2019, algorithm 1). The
optimiser itself is that of the library pytorch-optimizer; here its state takes the form that
checkpoints keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nas.errors import InputError

if TYPE_CHECKING:
    from pytorch_optimizer import Lookahead as SlowWeights

__all__ = ["Lookahead"]

_SLOW, _COUNTER = "slow_params", "fast_steps"


@dataclass(frozen=True)
class Lookahead:
    """How slow weights follow.

    Args:
        steps: k, updates between two moves of the slow weights; 0 is off, 5 usual.
        share: alpha, how far the slow weights move to the fast ones.

    Raises:
        InputError: fewer than 0 steps, or a share outside of 0..1.
    """

    steps: int = 0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.share <= 1:
            raise InputError(f"Lookahead takes steps >= 0 and a share above 0, to 1, got {self}.")

    def around(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimiser with slow weights, which start where its parameters are."""
        return _storable(optimizer, self) if self.steps else optimizer


def _storable(optimizer: torch.optim.Optimizer, settings: Lookahead) -> SlowWeights:
    from pytorch_optimizer import Lookahead as Wrapped  # noqa: PLC0415 - takes half a second

    class Storable(Wrapped):
        """Has the state of any optimiser of torch: tensors of each parameter, by its number."""

        def state_dict(self) -> Any:
            state = self.optimizer.state_dict()
            tensors = dict(state["state"])
            for index, (group, parameter) in enumerate(_numbered(self)):
                counter = torch.tensor(float(group["counter"]))
                slow = {_SLOW: self.state[parameter][_SLOW], _COUNTER: counter}
                tensors[index] = {**tensors.get(index, {}), **slow}
            return {**state, "state": tensors}

        @torch.no_grad()
        def load_state_dict(self, state: Any) -> None:
            slow = (_SLOW, _COUNTER)
            fast = {
                index: {key: value for key, value in tensors.items() if key not in slow}
                for index, tensors in state["state"].items()
            }
            known = {index: tensors for index, tensors in fast.items() if tensors}
            self.optimizer.load_state_dict({**state, "state": known})
            for index, (group, parameter) in enumerate(_numbered(self)):
                tensors = state["state"][index]
                self.state[parameter][_SLOW].copy_(tensors[_SLOW])
                group["counter"] = int(tensors[_COUNTER])

    return Storable(optimizer, k=settings.steps, alpha=settings.share)


def _numbered(optimizer: SlowWeights) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """List groups and parameters as torch numbers them in the state of an optimiser."""
    return [(group, each) for group in optimizer.param_groups for each in group["params"]]
