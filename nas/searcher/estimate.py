"""An accuracy that was not paid for in full: what it says, and what it must not be taken for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SMALLEST_SUBSET", "Estimate", "Fidelity"]

Fidelity = Literal["whole", "subset", "rung"]
"""What a score is of: all validation images and all training, part of the images, or part of the
training."""

SMALLEST_SUBSET = 150
"""On fewer images, differences of a few points of mAP are lost in noise: they decide nothing."""


@dataclass(frozen=True)
class Estimate:
    """What is known of a candidate whose evaluation was stopped; it stands on no front.

    Attributes:
        map50_95: of a subset, what the whole validation set would show, by comparison with a
            network that was scored on both; of a rung, what it reached there.
        low: lower bound of the 95 % interval.
        high: upper bound.
        fidelity: what was left out.
        images: validation images that were scored.
        iterations: of its training; None if its weights are shared.
    """

    map50_95: float
    low: float
    high: float
    fidelity: Fidelity
    images: int
    iterations: int | None = None
