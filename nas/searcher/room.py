"""Whether a training fits: memory and disk that it will need, from steps that are really taken.

The largest network is trained for a step on one image and on a few, before anything is large enough
to be killed for it. What one more image takes is the larger of two differences: of the peaks of the
process, which hold everything, and of the tensors that wait for the backward pass, which no memory
that the process has kept from before can hide. The whole batch follows from it. The checkpoint of
such a step is a file whose size is looked at. What images take, once resized, needs no trying.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress
from nas.errors import InputError, StorageError
from nas.searcher.memory import forget_peak, kibibytes, own_memory
from nas.units import bytes_text

__all__ = ["Hear", "Need", "Planned", "Room", "Steps", "require_room", "room_for"]

_FEW = 4  # images of the larger of the two probes
_CHECKPOINTS = 2  # a new one is written whole before it takes the place of the old one
_CGROUP = Path("/sys/fs/cgroup")

Hear = Callable[[Progress], None]
"""Called after each step."""

Steps = Callable[[Split, Recipe, Path | None, Hear | None], object]
"""Trains a fresh network: on what, how, with which checkpoint, and who hears of it."""


@dataclass(frozen=True)
class Planned:
    """A training that may be begun.

    Attributes:
        largest: trains its largest network alone, on its largest images.
        usual: trains what it will train.
        dataset: on what.
        recipe: how.
        sizes: heights and widths of the images that its networks take.
        device: where it computes.
        processes: that share the batch on this machine.
        iterations: steps in all; None takes the recipe's.
        copies: of the weights, where input sizes go on apart in the end.
        kept_later: most bytes in main memory that the process keeps in what follows.
    """

    largest: Steps
    usual: Steps
    dataset: Dataset
    recipe: Recipe
    sizes: tuple[tuple[int, int], ...]
    device: torch.device
    processes: int = 1
    iterations: int | None = None
    copies: int = 1
    kept_later: int = 0

    def probe(self, images: int, **changes: Any) -> tuple[Split, Recipe]:
        """Return a few images, and the recipe for one step with all of them, with changes.

        Nobody teaches in it: a teacher may have to be trained first.
        """
        train = self.dataset.train
        untaught = {name: getattr(Recipe(), name) for name in ("distillation", "pseudo_labels")}
        untaught |= {"iterations": 1, "batch_size": images}
        return (
            train.subset("train", range(min(images, len(train)))),
            dataclasses.replace(self.recipe, **{**untaught, **changes}),
        )


@dataclass(frozen=True)
class Need:
    """Bytes of something that are needed, and that are free; None where that cannot be known."""

    needed: int
    free: int | None

    @property
    def is_met(self) -> bool:
        """Whether there is enough, as far as is known."""
        return self.free is None or self.needed <= self.free

    def __str__(self) -> str:
        free = "unknown" if self.free is None else bytes_text(self.free)
        return f"{bytes_text(self.needed)} of {free} free"


@dataclass(frozen=True)
class Room:
    """What a training needs of the machine.

    Attributes:
        memory: peak of the process that trains, or of all on this machine, and of what it keeps
            later; of the GPU, if it is one that computes.
        disk: checkpoints, the weights in the end, and resized images.
        checkpoint: bytes of one checkpoint.
        resized: bytes of resized images on disk that are not there yet.
    """

    memory: Need
    disk: Need
    checkpoint: int
    resized: int


def require_room(planned: Planned, folder: Path) -> Room:
    """Refuse a training that the machine cannot hold.

    Args:
        planned: the training.
        folder: where checkpoints will be.

    Raises:
        InputError: memory does not suffice.
        StorageError: the disk does not suffice, or cannot be written to.
    """
    room = room_for(planned, folder)
    if not room.memory.is_met:
        raise InputError(
            f"Training must fit into memory: it takes {room.memory}, with batches of "
            f"{planned.recipe.batch_size} images at up to {_largest(planned.sizes)}.",
            "Set accumulate=2 or more in the recipe, or recompute=true; or take smaller images.",
        )
    if not room.disk.is_met:
        raise StorageError(
            f"Checkpoints and resized images must fit on the disk of {folder}: they take "
            f"{room.disk}.",
            "Free space, or choose another --workspace.",
        )
    return room


def room_for(planned: Planned, folder: Path) -> Room:
    """Measure what a training will need.

    Args:
        planned: the training.
        folder: where checkpoints will be.

    Raises:
        StorageError: the folder cannot be written to.
    """
    batch = math.ceil(planned.recipe.batch_size / planned.processes)
    part = math.ceil(batch / planned.recipe.accumulate)
    few = min(_FEW, max(part, 2))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "checkpoint"
        one, kept_of_one = _peak(planned, 1, path)
        several, kept = _peak(planned, few, path)
        checkpoint = path.stat().st_size
    each = max(several - one, kept - kept_of_one) / (few - 1)
    held, resized = _resized(planned)
    # What a checkpoint holds is in memory, too: for each copy but the one that was tried.
    network = several + each * max(part - few, 0) + (planned.copies - 1) * checkpoint
    needed = planned.processes * round(network)
    if planned.device.type == "cpu":
        # What a training has held may not be given back before that is needed.
        needed += planned.processes * held + planned.kept_later
    disk = (_CHECKPOINTS + 1) * checkpoint * planned.copies + resized
    free = shutil.disk_usage(folder).free
    memory = Need(needed, _free_memory(planned.device))
    return Room(memory, Need(disk, free), checkpoint, resized)


def _peak(planned: Planned, images: int, path: Path) -> tuple[int, int]:
    """Train for a step; return the most bytes that the process held, and those kept to go back."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    split, recipe = planned.probe(images, accumulate=1, largest_only=1.0)
    path.unlink(missing_ok=True)
    if planned.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(planned.device)
    else:  # where it cannot be forgotten, it is the process's so far, which is not too little
        forget_peak()
    with saved_tensors_hooks(note, lambda tensor: tensor):
        planned.largest(split, recipe, path, None)
    if planned.device.type == "cuda":
        peak = int(torch.cuda.max_memory_reserved(planned.device))
    else:
        peak = own_memory("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak, sum(sizes.values())


def _free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may hold in all, what it holds already included."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    available = kibibytes(Path("/proc/meminfo"), "MemAvailable")
    if not available:
        return None
    try:  # a container may have less than its machine
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        available = min(available, max(int(limit) - used, 0)) if limit != "max" else available
    except OSError:
        pass
    return available + own_memory("VmRSS")


def _resized(planned: Planned) -> tuple[int, int]:
    """Return the bytes of resized images in memory, and of those still to be written to disk."""
    splits = (planned.dataset.train, planned.dataset.validation)
    copies = [split.copy_place(*size) for split in splits for size in planned.sizes]
    held = sum(copy.size for copy in copies if copy.path is None)
    missing = sum(copy.size for copy in copies if copy.path is not None and not copy.is_written)
    return held, missing


def _largest(sizes: tuple[tuple[int, int], ...]) -> str:
    return "{} x {}".format(*max(sizes, key=math.prod))
