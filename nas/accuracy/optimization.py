"""The end of a step: gradients become an update, or training survives that they cannot.

- With fp16 the loss is multiplied before the backward pass, so that small gradients do not vanish
  (Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2), and gradients are divided
  again before they are clipped. A multiplier that was too large shows as gradients that are not
  finite while the loss is: the update is left out and the multiplier halved. This is how it finds
  its value, so it counts as an overflow, not as a bad step, until there is nothing left to halve.
- A bad step has a loss or gradient that is not finite for another reason: it makes no update. After
  five in a row training goes back to the averaged weights, which only good steps have touched, with
  half the learning rate from then on; a resumed training keeps the lower rate.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from nas.accuracy.checkpoint import Counters
from nas.accuracy.distributed import ALONE, Processes
from nas.accuracy.ema import WeightAverage
from nas.accuracy.recipe import Recipe
from nas.errors import TrainingError

__all__ = ["Optimization", "make_optimizer"]

_BAD_STEPS = 5  # in a row, before training goes back to the averaged weights
_ROLLBACKS = 3
_LEAST_SCALE = 1.0  # below, what is not finite is so without any scaling


class Optimization:
    """Updates the weights of one network.

    Args:
        network: what is trained.
        recipe: how.
        scaled: multiply losses, for fp16.
        processes: that train it together.

    Attributes:
        optimizer: holds the moments.
        scaler: multiplies losses; it multiplies nothing unless `scaled`.
        average: of the weights.
        counters: where the training stands.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, *, scaled: bool, processes: Processes = ALONE
    ) -> None:
        self._network, self._recipe, self._processes = network, recipe, processes
        self.optimizer = make_optimizer(network, recipe)
        device = next(network.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        ramp = max(recipe.ema_ramp * recipe.iterations, 1.0)
        self.average = WeightAverage(network, recipe.ema_decay, ramp)
        self.counters = Counters()

    def learning_rate(self, step: int) -> float:
        """Return the schedule's rate at a step, halved by every return to the averaged weights."""
        return self._recipe.learning_rate(step) * 0.5**self.counters.rollbacks

    def update(self, step: int, loss: float) -> str:
        """Take a step from the gradients that stand in the network, or leave it out.

        Args:
            step: from 0.
            loss: of the step, equal on all processes.

        Returns:
            What a person should know of it; mostly nothing.

        Raises:
            TrainingError: it is not finite again and again.
        """
        counters = self.counters
        counters.iteration = step + 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self._processes.average_gradients(self._network.parameters())
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self._recipe.clip)
        finite = math.isfinite(float(norm))
        overflowed = not finite and self.scaler.get_scale() > _LEAST_SCALE
        if math.isfinite(loss) and finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if math.isfinite(loss) and finite:
            counters.in_a_row = 0
            self.average.update(self._network, counters.updates)
        elif math.isfinite(loss) and overflowed:
            counters.overflows += 1
        else:
            return self._bad_step()
        return ""

    def _bad_step(self) -> str:
        counters = self.counters
        counters.skipped += 1
        counters.in_a_row += 1
        return self._roll_back() if counters.in_a_row >= _BAD_STEPS else ""

    def _roll_back(self) -> str:
        """Continue from the averaged weights, which only good steps have touched."""
        counters = self.counters
        counters.in_a_row = 0
        counters.rollbacks += 1
        if counters.rollbacks > _ROLLBACKS:
            raise TrainingError(
                f"The loss was not finite in {counters.skipped} of {counters.iteration} steps.",
                "Lower the learning rate, or set amp to 'off'.",
            )
        self.average.apply(self._network)
        self.optimizer = make_optimizer(self._network, self._recipe)
        return (
            f"The loss was not finite in {_BAD_STEPS} steps in a row, up to step "
            f"{counters.iteration}: training goes on from its averaged weights, with "
            f"{0.5**counters.rollbacks:g} of the planned learning rate."
        )


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; only tensors of two dimensions and more decay (not normalisation, bias, scales).

    With slow weights, if the recipe says so.
    """
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Not fused, the optimiser would spend longer on calls than on arithmetic.
    return recipe.lookahead.around(torch.optim.AdamW(groups, lr=recipe.peak_lr, fused=True))
