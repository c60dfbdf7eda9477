"""Which images a training step sees: a pure function of (seed, step).

A run resumed at step s sees what it would have seen without the interruption, with no state to
save.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from nas.accuracy.dataset import Annotations, ResizedSplit
from nas.errors import DatasetError

__all__ = ["BatchSampler", "batches"]


class BatchSampler:
    """Image indices of every training step: an endless stream of whole shuffled epochs.

    A batch may span two epochs, so every image is drawn equally often whatever the batch size.

    Args:
        images: number of images to draw from.
        batch_size: indices per step.
        seed: of the shuffles.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        if min(images, batch_size) < 1:
            raise DatasetError(
                f"A batch needs at least one image, got {images} images, batch size {batch_size}."
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def __call__(self, step: int) -> NDArray[np.int64]:
        """Return the (batch_size,) indices of `step`, counted from 0."""
        positions = step * self.batch_size + np.arange(self.batch_size)
        epochs, offsets = np.divmod(positions, self.images)
        wanted = {int(epoch): self._epoch(int(epoch)) for epoch in np.unique(epochs)}
        self._epochs = wanted
        return np.array(
            [wanted[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)], np.int64
        )

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch in self._epochs:
            return self._epochs[epoch]
        return np.random.default_rng([self.seed, epoch]).permutation(self.images)


def batches(
    split: ResizedSplit, batch_size: int, seed: int, start: int = 0
) -> Iterator[tuple[torch.Tensor, list[Annotations]]]:
    """Yield the training batches from step `start` on, without end.

    Yields:
        images (B, 3, H, W) uint8, and the objects of each in network pixels.
    """
    sampler = BatchSampler(len(split), batch_size, seed)
    step = start
    while True:
        yield split.batch(sampler(step))
        step += 1
