"""Three stages of training, as HSV-DET proposes for a detector with gated attention.

Warm-up: the gates of attention stay at zero, at the full learning rate, so that the convolutional
network is there before attention joins it. Hybrid: everything learns on augmented images while the
learning rate falls. Fine-tuning: the lowest learning rate, and images without augmentation. On the
slides ("3-Stage Training Protocol") these are 10, 70 and 20 of 100 epochs, and the last rate is a
hundredth of the first.

Their moving average of the weights begins with fine-tuning; here it always runs, and its memory is
shorter than that stage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from nas.errors import InputError

__all__ = ["Stages", "gates"]


@dataclass(frozen=True)
class Stages:
    """How long the first and the last stage are; without either there is one stage.

    Args:
        gate_warmup: share of the steps, at the start, in which gates stay at zero.
        fine_tuning: share of the steps, at the end, without augmentation.

    Raises:
        InputError: shares outside of 0..1, or that leave nothing between.
    """

    gate_warmup: float = 0.0
    fine_tuning: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.gate_warmup, self.fine_tuning)
        if min(shares) < 0 or sum(shares) >= 1:
            raise InputError(f"Stages are shares of the steps, below 1 together, got {self}.")

    def in_warmup(self, step: int, iterations: int) -> bool:
        """Whether gates stay at zero in a step, counted from 0."""
        return step < self.gate_warmup * iterations

    def in_fine_tuning(self, step: int, iterations: int) -> bool:
        """Whether images are not augmented in a step, counted from 0."""
        return step >= (1 - self.fine_tuning) * iterations


def gates(network: nn.Module) -> list[Tensor]:
    """List the learned gates of attention, of a detector or of a supernet."""
    return [
        parameter
        for name, parameter in network.named_parameters()
        if "gate" in re.split(r"[./]", name)
    ]
