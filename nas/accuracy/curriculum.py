"""A curriculum: easy images first, all of them in the end.

Each image has a difficulty, known from its objects alone. Training sees the easiest third of the
images at first, two thirds from `full_at` * 2 / 5 of its steps on, and all from `full_at` on: one
step of a pacing function (Bengio et al., ICML 2009, section 5; Hacohen and Weinshall, ICML 2019,
section 2). The images of a step remain a function of (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.batches import BatchSampler
from nas.accuracy.dataset import Annotations, Split
from nas.accuracy.detections import paired_iou
from nas.errors import InputError

__all__ = ["Curriculum", "Order"]

Order = Callable[[int], NDArray[np.int64]]
"""The indices of a step's images."""

_STAGES = ((1 / 3, 0.0), (2 / 3, 0.4), (1.0, 1.0))
"""Share of the images, and where training begins to see them, as a share of `full_at`."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curriculum:
    """What makes an image difficult, and when all images are seen.

    The difficulty is the weighted sum of three scores, each with mean 0 and variance 1 over the
    training images. It is off if all weights are 0.

    Args:
        count: weight of the number of objects.
        crowding: weight of the mean overlap of an object with its nearest neighbour, as IoU.
        smallness: weight of the mean of -log2 of an object's share of the image.
        full_at: share of the steps after which all images are seen.

    Raises:
        InputError: a negative weight, or a share outside of 0..1.
    """

    count: float = 0.0
    crowding: float = 0.0
    smallness: float = 0.0
    full_at: float = 0.5

    def __post_init__(self) -> None:
        weights = (self.count, self.crowding, self.smallness)
        if not all(math.isfinite(one) and one >= 0 for one in weights):
            raise InputError(f"Weights of a curriculum are at least 0, got {self}.")
        if not 0 <= self.full_at <= 1:
            raise InputError(f"A curriculum sees all images at 0..1 of the steps, got {self}.")

    @property
    def on(self) -> bool:
        """Whether anything makes an image difficult."""
        return max(self.count, self.crowding, self.smallness) > 0

    def difficulty(self, split: Split) -> _Floats:
        """Return the difficulty (n,) of the images of a split."""
        pairs = list(zip(split.annotations, split.sizes, strict=True))
        scores = (
            (self.count, [float(len(objects)) for objects, _ in pairs]),
            (self.crowding, [_crowding(objects) for objects, _ in pairs]),
            (self.smallness, [_smallness(objects, float(size.prod())) for objects, size in pairs]),
        )
        total = np.zeros(len(split))
        for weight, each in scores:
            total += weight * _standardised(np.array(each))
        return total

    def order(self, split: Split, batch_size: int, iterations: int, seed: int) -> Order:
        """Return which images each step sees; all in whole shuffled epochs if this is off.

        Args:
            split: the training images.
            batch_size: images per step.
            iterations: of the whole training.
            seed: of the shuffles.
        """
        whole = BatchSampler(len(split), batch_size, seed)
        if not self.on:
            return whole
        easiest = np.argsort(self.difficulty(split), kind="stable")
        stages = []
        for share, start in _STAGES:
            count = math.ceil(share * len(split))
            first = round(start * self.full_at * iterations)
            stages.append((first, easiest[:count], BatchSampler(count, batch_size, seed)))

        def batch(step: int) -> NDArray[np.int64]:
            first, pool, sampler = next(one for one in reversed(stages) if step >= one[0])
            chosen: NDArray[np.int64] = pool[sampler(step - first)]
            return chosen

        return batch


def _crowding(objects: Annotations) -> float:
    if len(objects) < 2:
        return 0.0
    iou = paired_iou(objects.boxes[:, None], objects.boxes[None])
    np.fill_diagonal(iou, 0)
    return float(iou.max(1).mean())


def _smallness(objects: Annotations, area: float) -> float:
    """Return the mean of -log2 of the objects' shares of the image; 0 for an empty image."""
    if not len(objects):
        return 0.0
    return float(-np.log2(objects.areas.clip(1) / area).mean())


def _standardised(scores: _Floats) -> _Floats:
    deviation = scores.std()
    centred: _Floats = scores - scores.mean()
    return centred / deviation if deviation else centred
