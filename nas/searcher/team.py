"""Trainings: who hears of them, when a checkpoint is due, and the processes that share them.

`torchrun --nproc-per-node 2 -m nas search ...` starts several processes. Only trainings are shared:
the first process runs the command, and sends each training to the others, which wait for the next
one until the command ends. So one process alone touches the database, the files and the device that
is measured, and nothing else is done twice.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.distributed import ALONE, Processes
from nas.accuracy.recipe import Recipe
from nas.accuracy.teacher import Teacher
from nas.accuracy.training import Progress, TrainingResult, train_detector
from nas.errors import NasError, StorageError, TrainingError
from nas.latency.clock import Elapsed
from nas.model.detector import Detector
from nas.searcher.progress import Listener
from nas.searcher.room import Hear, Planned
from nas.space.architecture import Architecture

__all__ = [
    "Due",
    "Part",
    "help_out",
    "joined",
    "own_part",
    "planned_detector",
    "train_network",
    "train_together",
]

_T = TypeVar("_T")

_CHECKPOINT_S = 30.0
_PATIENCE = timedelta(days=365)  # a search may measure for days between two trainings


class Due:
    """Says when a checkpoint is due, so that a killed training loses less than a minute.

    Half of that minute is for the step and the writing that are under way. A step that takes longer
    is written at once, and lost whole if it is killed in its middle.

    Args:
        seconds: wall time between two checkpoints.
    """

    def __init__(self, seconds: float = _CHECKPOINT_S) -> None:
        self._seconds = seconds
        self._elapsed = Elapsed()

    def __call__(self) -> bool:
        """Return whether the time is over, and begin anew if so."""
        over = self._elapsed.wall_s >= self._seconds
        if over:
            self._elapsed = Elapsed()
        return over


@dataclass(frozen=True)
class Part:
    """How a process takes part in a training.

    Attributes:
        processes: that train together.
        device: where this one computes.
        progress: called after each step.
        due: asked whether a checkpoint is due.
    """

    processes: Processes
    device: torch.device
    progress: Callable[[Progress], None] | None = None
    due: Callable[[], bool] | None = None


@dataclass
class _Team:
    """The processes that `joined` this one, and whether they can still hear each other."""

    processes: Processes = ALONE
    broken: bool = False


_team = _Team()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes, if torchrun has started this one; the first says when it ends."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_device())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    # Default arguments in there hold whatever group there is at its first import, which training
    # sets off. Threads of a group that is held outlive it, and may abort Python as it ends.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group(backend, timeout=_PATIENCE)
    _team.processes = Processes.joined()
    try:
        yield _team.processes
    finally:
        if _team.processes.first and not _team.broken:
            with suppress(TrainingError):
                _sent(None)
        distributed.destroy_process_group()
        _team.processes = ALONE


def train_together(training: Callable[[Part], _T], listener: Listener) -> _T:
    """Run a training in this process and in all that have joined it.

    Args:
        training: does one process's part; what it needs must be able to be sent.
        listener: hears of each step.

    Raises:
        TrainingError: another process has ended, or as `training`.
    """
    part = Part(_team.processes, _device(), _heard(listener), Due())
    if part.processes.count > 1:
        listener.say(f"{part.processes.count} processes train together, each a part of the batch.")
        _sent(training)
    try:
        return training(part)
    except BaseException as error:
        # Most errors of ours happen to all processes at once. Others find them in the middle of a
        # step, in which they wait for this one and cannot hear that it leaves.
        _team.broken = not isinstance(error, NasError) or isinstance(error, StorageError)
        raise


def own_part() -> Part:
    """Return this process's part in whatever is trained, heard by nobody."""
    return Part(_team.processes, _device())


def help_out() -> None:
    """Take part in the trainings of the first process until it says that there are no more.

    Raises:
        TrainingError: it has ended without a word.
    """
    torch.set_num_threads(1)
    while (training := _sent(None)) is not None:
        with suppress(NasError):  # the first process has the same error, and says so
            training(own_part())


def train_network(
    detector: Detector,
    split: Split,
    recipe: Recipe,
    listener: Listener,
    checkpoint: Path | None = None,
    teacher: Teacher | None = None,
) -> TrainingResult:
    """Train a detector in place, by all processes that have joined this one.

    Args and errors as in `nas.accuracy.training.train_detector`.
    """
    training = partial(_trained, detector, split, recipe, checkpoint, teacher)
    return train_together(training, listener)


def planned_detector(architecture: Architecture, dataset: Dataset, recipe: Recipe) -> Planned:
    """Return the training of one detector, to find out what it will take."""
    part = own_part()

    def take(
        split: Split, recipe: Recipe, checkpoint: Path | None, progress: Hear | None = None
    ) -> None:
        detector = Detector(architecture, seed=recipe.seed)
        _trained(detector, split, recipe, checkpoint, None, Part(ALONE, part.device, progress))

    sizes = (architecture.input,)
    return Planned(take, take, dataset, recipe, sizes, part.device, part.processes.count)


def _trained(
    detector: Detector,
    split: Split,
    recipe: Recipe,
    checkpoint: Path | None,
    teacher: Teacher | None,
    part: Part,
) -> TrainingResult:
    detector.to(part.device)
    result = train_detector(
        detector,
        split,
        recipe,
        teacher=teacher,
        progress=part.progress,
        checkpoint=checkpoint,
        due=part.due,
        processes=part.processes,
    )
    detector.to("cpu")
    return result


def _heard(listener: Listener) -> Callable[[Progress], None]:
    def hear(progress: Progress) -> None:
        listener.advance(progress.iteration, f"loss {progress.loss:.2f}")
        if progress.note:
            listener.say(progress.note, warning=True)

    return hear


def _device() -> torch.device:
    """Return where this process trains: on its GPU, if there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _sent(training: Callable[[Part], Any] | None) -> Callable[[Part], Any] | None:
    """Return what the first process sends; what the others give is not looked at."""
    box = [training]
    try:
        # On a device of their own, bytes would need a GPU to be sent.
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    except RuntimeError as error:
        raise TrainingError(
            f"A process that trained with this one has ended: {error}.", "Its own message says why."
        ) from error
    return box[0]
