"""What a search will take, said before anything is spent on it.

Nothing here is assumed of the machine: steps of the training are taken on real images, a network is
exported, built and scored, images are resized, each for a few seconds, and multiplied by how many
there will be. Latencies are not in it: measuring them is part of the search.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from nas.accuracy.dataset import Split
from nas.accuracy.training import Progress
from nas.latency.clock import Elapsed
from nas.model.detector import Detector
from nas.model.supernet import recalibrate
from nas.searcher.engines import score_engine, trained_graph
from nas.searcher.inherited import recalibration_images
from nas.searcher.progress import Listener
from nas.searcher.request import Request
from nas.searcher.room import Planned, Room, room_for
from nas.searcher.setting import Setting
from nas.searcher.supernets import planned_supernet, weights_of

__all__ = ["Forecast", "Stage", "forecast", "training_seconds"]

_STEPS = 6  # timed, after one that builds what the others use
_IMAGES = 32  # resized and scored, to tell how long one takes
_RECALIBRATED = 256  # images that recalibration draws from, so that not all have to be resized


@dataclass(frozen=True)
class Stage:
    """Something that will be done.

    Attributes:
        name: of what.
        seconds: wall time on the machine as it is now.
        note: how much of it.
    """

    name: str
    seconds: float
    note: str


@dataclass(frozen=True)
class Forecast:
    """What will be done, in this order, and what the machine must have for it."""

    stages: tuple[Stage, ...]
    room: Room


def forecast(setting: Setting, listener: Listener) -> Forecast:
    """Measure what a search will take.

    Args:
        setting: the search, opened.
        listener: hears how it goes.

    Raises:
        StorageError: the workspace cannot be written to.
        NasError: the largest network cannot be trained, exported or built.
    """
    request = setting.request
    recipe = request.recipe()
    folder = request.workspace.supernet("-").parent
    folder.mkdir(parents=True, exist_ok=True)
    planned = planned_supernet(setting.space, setting.dataset, recipe)
    listener.stage("Try out the training", 0)
    room = room_for(planned, folder)
    stages = [_resizing(planned)]
    weights = request.workspace.supernet(weights_of(setting))
    if weights.exists():
        stages.append(Stage("Train the supernet", 0.0, "trained already"))
    else:
        note = f"{recipe.supernet_iterations} steps of {recipe.batch_size} images"
        stages.append(Stage("Train the supernet", training_seconds(planned), note))
    listener.stage("Try out the scoring", 0)
    stages.append(_scoring(setting))
    stages.append(_confirming(request, planned))
    return Forecast(tuple(stages), room)


def _confirming(request: Request, planned: Planned) -> Stage:
    """Train the largest network a few steps: what is confirmed and compared is smaller."""
    steps = request.recipe().fine_tuning().iterations
    networks = request.confirmation.networks
    trainings, workers = networks * len(request.fine_tunings), request.workers
    step = _seconds_per_step(planned, planned.largest, largest_only=1.0)
    note = f"at most {networks}, {trainings} times {steps} steps, {workers} side by side"
    seconds = step * steps * math.ceil(trainings / workers)
    return Stage("Fine-tune networks", seconds, note)


def training_seconds(planned: Planned) -> float:
    """Return the wall seconds of a whole training, from a few of its steps."""
    share = planned.recipe.largest_only
    alone = _seconds_per_step(planned, planned.largest, largest_only=1.0) if share else 0.0
    usual = _seconds_per_step(planned, planned.usual, largest_only=0.0) if share < 1 else 0.0
    return (planned.iterations or planned.recipe.iterations) * (share * alone + (1 - share) * usual)


def _seconds_per_step(planned: Planned, steps: Callable[..., object], **changes: float) -> float:
    """Return the median wall seconds of a few steps with whole batches."""
    batch = -(-planned.recipe.batch_size // planned.processes)
    split, recipe = planned.probe(batch, iterations=_STEPS + 1, **changes)
    elapsed, marks = Elapsed(), list[float]()

    def mark(_: Progress) -> None:
        marks.append(elapsed.wall_s)

    steps(split, recipe, None, mark)
    return statistics.median(after - before for before, after in itertools.pairwise(marks))


def _resizing(planned: Planned) -> Stage:
    splits = (planned.dataset.train, planned.dataset.validation)
    missing = sum(
        len(split)
        for split in splits
        for size in planned.sizes
        if not split.copy_place(*size).is_written
    )
    some = range(min(_IMAGES, len(planned.dataset.train)))
    elapsed = Elapsed()
    planned.dataset.train.subset("train", some).resized(*max(planned.sizes))
    each = elapsed.wall_s / len(some)
    return Stage("Resize the images", missing * each, f"{missing} copies")


def _scoring(setting: Setting) -> Stage:
    """Score the largest network, untrained: what it finds does not change how long it takes."""
    candidate = setting.candidate(setting.space.anchors["max"])
    train = setting.dataset.train
    train = train.subset("train", range(min(_RECALIBRATED, len(train))))
    train.resized(*candidate.architecture.input)  # which is a stage of its own
    elapsed = Elapsed()
    detector = Detector(candidate.architecture)
    recalibrate(detector, recalibration_images(train, candidate.architecture))
    graph = trained_graph(detector, candidate, train)
    once = elapsed.wall_s
    split = _some_with_objects(setting.dataset.validation)
    elapsed = Elapsed()
    score_engine(graph, candidate, setting.runtime, split, weights="inherited")
    seconds = once + elapsed.wall_s * len(setting.dataset.validation) / len(split)
    wanted = setting.request.wanted
    note = f"{wanted} candidates on {len(setting.dataset.validation)} images; at most"
    return Stage("Score candidates", wanted * seconds, note)


def _some_with_objects(split: Split) -> Split:
    """Take the images with most objects: a split without any cannot be scored."""
    order = sorted(range(len(split)), key=lambda index: -len(split.annotations[index]))
    return split.subset(split.name, sorted(order[:_IMAGES]))
