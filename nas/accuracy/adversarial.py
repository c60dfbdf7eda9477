"""Adversarial training by the fast gradient sign method.

A share of every batch is moved by a small step into the direction in which the loss grows fastest,
x' = clip(x + epsilon * sign(dL/dx), 0, 1) (Goodfellow et al., ICLR 2015, section 4); the rest of it
stays clean, so that the network learns from both (Kurakin et al., ICLR 2017, section 3). It costs
one more pass forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.errors import InputError

__all__ = ["Adversarial"]


@dataclass(frozen=True)
class Adversarial:
    """How images are moved.

    Args:
        epsilon: the step, where images lie in 0..1; 0 is off, 0.01 to 0.03 usual.
        share: of a batch that is moved.

    Raises:
        InputError: a step or a share outside of 0..1.
    """

    epsilon: float = 0.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.epsilon <= 1 and 0 < self.share <= 1):
            raise InputError(
                f"Adversarial training takes a step in 0..1 and a share above 0, to 1, got {self}."
            )

    def __call__(self, images: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Move the first images of a batch, which come in random order.

        Args:
            images: (B, 3, H, W) in 0..1; they stay as they are.
            loss_of: images (B, 3, H, W) -> their loss, a scalar.
        """
        count = round(self.share * len(images))
        seen = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(seen), seen)
        changed = images.detach().clone()
        changed[:count] = (changed[:count] + self.epsilon * gradient[:count].sign()).clamp(0, 1)
        return changed
