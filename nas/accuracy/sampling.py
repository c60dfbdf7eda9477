"""Which subnets of a supernet a training step trains.

`uniform` trains one random subnet a step, as RF-DETR does (Robinson et al., 2025). `sandwich`
trains the largest, the smallest and one random subnet and adds their gradients (Yu et al., BigNAS,
ECCV 2020): three times the cost of a step for one update, which short schedules cannot afford;
`benchmarks/supernet_sampling.py` compares them at equal cost. Before either, the first steps may
train the largest subnet alone, at one input size: classes only begin to be told apart when the same
network sees them step after step, and it lifts the weights that all others share.

How the random subnet is drawn is a rule of its own, `Draws`. Independent chance leaves some of
what a space offers behind in a short schedule: blocks of a type that came up rarely are
undertrained and look worse than they are. All subnets of a step share its input size, and
everything is a function of (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from nas.errors import InputError
from nas.space.architecture import Architecture
from nas.space.references import flatten
from nas.space.space import Point, SearchSpace
from nas.space.space_file import Label

__all__ = ["Cost", "Draws", "Rule", "Sample", "Subnets"]

_DRAWS = 101  # of input sizes, to find their median
_LANDMARKS = 64  # draws between whose costs the buckets lie
_TRIES = 6  # to hit a bucket; each costs a few milliseconds, where costs are MACs

Rule = Literal["uniform", "sandwich"]
Sample = Callable[[int, np.random.Generator], Architecture]
"""Draws the subnet of a step, its input size included."""

Cost = Callable[[Architecture], float]
"""What running a network costs, above 0, in any unit: MACs, or ms on some device."""


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
        """Return the subnets of a step, counted from 0; all have one input size.

        If there are several, the largest comes first.
        """
        if step < self.warmup:
            return (self._first,)
        drawn = self.sample(step, generator)
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
        sizes = [self.sample(draw, generator).input for draw in range(_DRAWS)]
        return self.largest.at_input(sorted(sizes, key=math.prod)[_DRAWS // 2])


@dataclass(frozen=True)
class Draws:
    """Draws random subnets of a space, one a step.

    Args:
        space: whose points are drawn.
        classes: of the data set.
        seed: of the order in which options and buckets come.
        fair: let the operators among which a choice decides come equally often, in random order:
            block types, kinds of convolution or neck (strict fairness, Chu et al., FairNAS, ICCV
            2021); and networks with and without the attention that a choice inserts, however many
            sizes of it there are. Its gates start at zero and learn only when drawn, and the
            weights around it learn to do without it only when it is not.
        strata: buckets of cost, equally wide in its logarithm, that come equally often; the subnet
            is drawn within (Wang et al., AttentiveNAS, CVPR 2021, by FLOPs). Chance alone seldom
            draws the cheapest and the dearest. 0 leaves it to chance.
        cost: what the buckets are of.

    Raises:
        InputError: strata below 0, or without a cost.
    """

    space: SearchSpace
    classes: int
    seed: int = 0
    fair: bool = False
    strata: int = 0
    cost: Cost | None = None

    def __post_init__(self) -> None:
        if self.strata < 0 or (self.strata and self.cost is None):
            raise InputError(
                f"Strata are 0 or more, and of a cost, got {self.strata} of {self.cost}."
            )

    def __call__(self, step: int, generator: np.random.Generator) -> Architecture:
        """Draw the subnet of a step, counted from 0."""
        fixed = {}
        for place, (name, groups) in enumerate(self._operators.items()):
            group = groups[self._turn(step, len(groups), place)]
            fixed[name] = group[int(generator.integers(len(group)))]
        tries = _TRIES if self.strata else 1
        found = []
        for _ in range(tries):
            drawn = self._built({**self.space.sample(generator), **fixed})
            found.append((self._off_bucket(step, drawn), drawn))
            if not found[-1][0]:
                break
        return min(found, key=lambda one: one[0])[1]

    def _turn(self, step: int, options: int, place: int) -> int:
        """Return which option is on: a random order of all of them, then another, and so on."""
        block, position = divmod(step, options)
        order = np.random.default_rng([self.seed, place, block]).permutation(options)
        return int(order[position])

    def _built(self, point: Point) -> Architecture:
        return self.space.candidate(point, self.classes).architecture

    def _off_bucket(self, step: int, drawn: Architecture) -> float:
        """Return how far the logarithm of the cost lies outside of the bucket that is on."""
        if not self.strata or self.cost is None:
            return 0.0
        bucket = self._turn(step, self.strata, len(self._operators))
        low, high = self._edges[bucket], self._edges[bucket + 1]
        cost = min(max(math.log(self.cost(drawn)), self._edges[0]), self._edges[-1])
        return max(low - cost, cost - high, 0.0)

    @cached_property
    def _edges(self) -> tuple[float, ...]:
        assert self.cost is not None
        generator = np.random.default_rng(self.seed)
        points = [self.space.sample(generator) for _ in range(_LANDMARKS)]
        costs = [math.log(self.cost(self._built(point))) for point in points]
        return tuple(np.linspace(min(costs), max(costs), self.strata + 1).tolist())

    @cached_property
    def _operators(self) -> Mapping[str, tuple[tuple[Label, ...], ...]]:
        """Group the labels of each choice of operators, by the operator that they stand for."""
        if not self.fair:
            return {}
        grouped = {name: self._grouped(name) for name in self.space.choices}
        return {name: groups for name, groups in grouped.items() if len(groups) > 1}

    def _grouped(self, name: str) -> tuple[tuple[Label, ...], ...]:
        beside = self.space.revealing(name)
        groups: dict[Hashable, list[Label]] = {}
        for label in self.space.choices[name]:
            operator = _operator(self._built({**beside, name: label}))
            groups.setdefault(operator, []).append(label)
        return tuple(tuple(group) for group in groups.values())


def _operator(architecture: Architecture) -> Hashable:
    """Return the words of an architecture, and where it has attention; no sizes."""
    described = flatten(architecture.model_dump(mode="json", exclude={"attention"}))
    words = tuple(item for item in described.items() if isinstance(item[1], str))
    return words, tuple(architecture.attention.model_dump(exclude_none=True))
