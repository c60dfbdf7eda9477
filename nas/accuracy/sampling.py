"""Which subnets of a supernet a training step trains.

`uniform` trains one random subnet a step, as RF-DETR does (Robinson et al., 2025). `sandwich`
trains the largest, the smallest and one random subnet and adds their gradients (Yu et al., BigNAS,
ECCV 2020): three times the cost of a step for one update, which short schedules cannot afford;
`benchmarks/supernet_sampling.py` compares them at equal cost. Before either, the first steps may
train the largest subnet alone, at one input size: classes only begin to be told apart when the same
network sees them step after step, and it lifts the weights that all others share.

All subnets of a step share its input size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from nas.errors import InputError
from nas.space.architecture import Architecture

__all__ = ["Rule", "Sample", "Subnets"]

_DRAWS = 101  # of input sizes, to find their median

Rule = Literal["uniform", "sandwich"]
Sample = Callable[[np.random.Generator], Architecture]


@dataclass(frozen=True)
class Subnets:
    """Chooses the subnets of each step.

    Args:
        rule: see the module.
        sample: draws a subnet, its input size included.
        largest: trained alone in the warm-up, at the median input size of what `sample` draws.
        smallest: needed by `sandwich`.
        warmup: number of steps at the start that train only the largest.

    Raises:
        InputError: `sandwich` without a smallest subnet.
    """

    rule: Rule
    sample: Sample
    largest: Architecture
    smallest: Architecture | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.rule == "sandwich" and self.smallest is None:
            raise InputError(
                "The rule 'sandwich' needs the smallest subnet, got none.", "Give `smallest`."
            )

    def __call__(self, step: int, generator: np.random.Generator) -> tuple[Architecture, ...]:
        """Return the subnets of a step, counted from 0; all have one input size."""
        if step < self.warmup:
            return (self._first,)
        drawn = self.sample(generator)
        if self.smallest is None or self.rule == "uniform":
            return (drawn,)
        return (
            self.largest.at_input(drawn.input),
            self.smallest.at_input(drawn.input),
            drawn,
        )

    @cached_property
    def _first(self) -> Architecture:
        generator = np.random.default_rng(0)
        sizes = [self.sample(generator).input for _ in range(_DRAWS)]
        return self.largest.at_input(sorted(sizes, key=math.prod)[_DRAWS // 2])
