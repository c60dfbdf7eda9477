"""The score of a candidate: one number that orders the front, never a substitute for the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nas.errors import InputError

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """alpha x mAP - beta x latency, a view of the front; the budget stays a hard constraint.

    The form mAP - lambda x latency is `Score(beta=lambda)`; mAP lies in 0..1, so lambda is the mAP
    that one millisecond is worth.

    Args:
        alpha: weight of mAP50-95; positive.
        beta: weight of the latency in ms; not negative.

    Raises:
        InputError: a weight is not finite or has the wrong sign.
    """

    alpha: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(
                f"alpha must be a positive number, got {self.alpha:g}.",
                "Leave it at 1, and weigh the latency with lambda.",
            )
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(
                f"beta (lambda) is a number of at least 0, got {self.beta:g}.",
                "Give what a millisecond is worth in mAP, such as 0.02; 0 orders by mAP alone.",
            )

    def __call__(self, accuracy: float, latency_ms: float) -> float:
        """Score an mAP in 0..1 and a latency in ms."""
        return self.alpha * accuracy - self.beta * latency_ms

    def __str__(self) -> str:
        if self.alpha == 1:
            return f"mAP50-95 - {self.beta:g} x latency" if self.beta else "mAP50-95"
        return f"{self.alpha:g} x mAP50-95 - {self.beta:g} x latency"
