"""Training by several processes: each computes its part of every batch, and all stay equal.

Why an explicit all-reduce, and not `torch.nn.parallel.DistributedDataParallel`: that wrapper counts
on one forward and one backward pass with the same parameters in each. A step here runs several
subnets, each with other slices of one table. Under `no_sync` for all but the last, the wrapper's
hooks would reduce only what the last subnet used; with `find_unused_parameters` it walks the graph
of every subnet again, and still fires in the middle of a step. Here gradients of all subnets are
added up first and averaged once. That gives up the overlap of computing and sending, which one
reduction for several backward passes makes up for.

Data order, subnets and augmentation are functions of (seed, step), so all processes draw the same
ones, and each takes its share of the images. The divisors of the loss are averaged over processes
before they divide, so the average of the gradients is that of the whole batch. Only batch
statistics are not: each process normalises by its own part of the batch. They stay independent so
that no layer has to wait for the others, and are replaced by recalibration anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from nas.errors import TrainingError

__all__ = ["ALONE", "Processes"]


@dataclass(frozen=True)
class Processes:
    """The processes that train one network together.

    Attributes:
        rank: which one this is; the first, 0, writes checkpoints and reports.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> Processes:
        """Return the process group of torch that this process has joined, or this process alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def part(self, images: int) -> slice:
        """Return this process's share of a batch; shares differ by one image at most."""
        bounds = np.linspace(0, images, self.count + 1).round().astype(int)
        return slice(int(bounds[self.rank]), int(bounds[self.rank + 1]))

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over the processes; the same on all of them.

        Raises:
            TrainingError: another process has ended.
        """
        if self.count == 1:
            return values
        total = values.detach().clone()
        _together(lambda: distributed.all_reduce(total))
        return total / self.count

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average all gradients in place, in one message.

        A parameter that no subnet of the step used has none, on every process, and stays so: the
        optimiser then leaves it and its moments alone.

        Raises:
            TrainingError: another process has ended.
        """
        if self.count == 1:
            return
        gradients = [one.grad for one in parameters if one.grad is not None]
        flat = self.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view(gradient.shape))

    def require_equal(self, **values: Any) -> None:
        """Check that all processes agree on what they are about to do.

        Raises:
            TrainingError: they do not, or another process has ended.
        """
        if self.count == 1:
            return
        found: list[Any] = [None] * self.count
        _together(lambda: distributed.all_gather_object(found, values))
        for name in values:
            differing = [each[name] for each in found]
            if any(value != differing[0] for value in differing):
                raise TrainingError(
                    f"All processes of a training must have the same {name}, got {differing}.",
                    "Give all of them the same files: a folder that every machine sees.",
                )


ALONE = Processes()
"""One process."""


def _together(call: Callable[[], object]) -> None:
    """Take part in something that all processes do."""
    try:
        call()
    except RuntimeError as error:
        raise TrainingError(
            f"A process that trained with this one has ended: {error}.",
            "Its own message says why; the same command continues from the last checkpoint.",
        ) from error
