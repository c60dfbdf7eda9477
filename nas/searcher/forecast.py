"""What a search or a training will take, said before anything is spent on it.

What one of each thing takes is tried out (`unit_costs.py`) and multiplied by how many there will
be, each for the largest network: others take less. How many can be known only from above where it
depends on what is found, and some things cannot be counted at all; those are named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from nas.accuracy.dataset import Dataset
from nas.accuracy.recipe import Recipe
from nas.latency.clock import Elapsed
from nas.latency.oracle import LatencyOracle
from nas.latency.rebuilt import MOST_BUILDS
from nas.latency.runtimes.base import Runtime
from nas.searcher.progress import Listener
from nas.searcher.request import Request
from nas.searcher.room import Planned, Room, room_for
from nas.searcher.rungs import steps_of_rungs
from nas.searcher.screening import screened
from nas.searcher.setting import Setting
from nas.searcher.supernets import planned_supernet, weights_of
from nas.searcher.team import planned_detector
from nas.searcher.trust_job import Effort
from nas.searcher.unit_costs import UnitCosts, training_seconds
from nas.space.architecture import Candidate

__all__ = [
    "Forecast",
    "Stage",
    "forecast",
    "forecast_training",
    "stages_after_training",
]

_IMAGES = 32  # resized, to tell how long one takes


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
    """What will be done, in this order, and what the machine must have for it.

    Attributes:
        what: is forecast, and whether it may be less, such as `A search takes at most`.
        stages: its parts.
        room: memory and disk.
        left_out: what is not in the time.
    """

    what: str
    stages: tuple[Stage, ...]
    room: Room
    left_out: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(stage.seconds for stage in self.stages)


def forecast(setting: Setting, listener: Listener) -> Forecast:
    """Try out what a search will take.

    Args:
        setting: the search, opened.
        listener: hears how it goes.

    Raises:
        StorageError: the workspace cannot be written to.
        NasError: the largest network cannot be trained, exported, built or measured.
    """
    request, dataset = setting.request, setting.dataset
    recipe = request.recipe()
    folder = request.workspace.supernet("-").parent
    folder.mkdir(parents=True, exist_ok=True)
    largest = setting.candidate(setting.space.anchors["max"])
    listener.stage("Try out the training", 0)
    if request.accuracy == "training":
        planned = planned_detector(largest.architecture, dataset, recipe)
        trained = []
    else:
        planned = planned_supernet(setting.space, dataset, recipe)
        trained = [_supernet(setting, planned)]
    room = room_for(planned, folder)
    costs = _tried(largest, dataset, recipe, setting.runtime, setting.oracle, listener)
    counted = stages_after_training(request, costs, dataset)
    left_out = [
        f"candidates over the budget, each measured ({costs.measurement:.1f} s)",
        *(["a teacher"] if recipe.needs_teacher else []),
    ]
    stages = (_resizing(planned), _screening(request, costs), *trained, *counted)
    return Forecast("A search takes at most", stages, room, tuple(left_out))


def forecast_training(
    candidate: Candidate,
    dataset: Dataset,
    recipe: Recipe,
    runtime: Runtime,
    oracle: LatencyOracle,
    folder: Path,
    listener: Listener,
) -> Forecast:
    """Try out what the training of one network will take, with its scores and its latency.

    Args:
        candidate: the network, and the precision of its engine.
        dataset: what it is trained and scored on.
        recipe: how.
        runtime: builds its engine.
        oracle: measures it.
        folder: where checkpoints will be.
        listener: hears how it goes.

    Raises:
        StorageError: the folder cannot be written to.
        NasError: it cannot be trained, exported, built or measured.
    """
    listener.stage("Try out the training", 0)
    planned = planned_detector(candidate.architecture, dataset, recipe)
    room = room_for(planned, folder)
    costs = _tried(candidate, dataset, recipe, runtime, oracle, listener)
    images = _images(dataset)
    stages = (
        _resizing(planned),
        Stage("Train", recipe.iterations * costs.step, _steps(recipe, recipe.iterations)),
        Stage("Score", sum(map(costs.scoring, images)), f"{sum(images)} images"),
        Stage("Measure", costs.start + costs.measurement, "once"),
    )
    left_out = ("a teacher",) if recipe.needs_teacher else ()
    return Forecast("A training takes about", stages, room, left_out)


def stages_after_training(
    request: Request, costs: UnitCosts, dataset: Dataset
) -> tuple[Stage, ...]:
    """Count what a search does once candidates can be scored.

    Args:
        request: the search.
        costs: of the largest network.
        dataset: what is scored.
    """
    validation, *test = _images(dataset)
    stages = [_candidates(request, costs, validation)]
    if request.checks_ranking:
        stages.append(_landmarks(request, costs, validation))
    if request.confirmation.baselines != "none":
        stages.append(_plain_rules(request, costs, validation))
    if request.confirmation.baselines == "all" and request.accuracy != "training":
        stages.append(_random_search(request, costs, validation))
    stages.append(_builds(request, costs))
    stages.append(_fine_tunings(request, costs, validation, sum(test)))
    return tuple(stages)


def _tried(
    candidate: Candidate,
    dataset: Dataset,
    recipe: Recipe,
    runtime: Runtime,
    oracle: LatencyOracle,
    listener: Listener,
) -> UnitCosts:
    listener.stage("Try out scoring and measuring", 0)
    return UnitCosts.of(candidate, dataset, recipe, runtime, oracle)


def _images(dataset: Dataset) -> list[int]:
    return [len(split) for split in (dataset.validation, dataset.test) if split is not None]


def _steps(recipe: Recipe, steps: int) -> str:
    return f"{steps} steps of {recipe.batch_size} images"


def _supernet(setting: Setting, planned: Planned) -> Stage:
    name, recipe = "Train the supernet", setting.request.recipe()
    if setting.request.workspace.supernet(weights_of(setting)).exists():
        return Stage(name, 0.0, "trained already")
    return Stage(name, training_seconds(planned), _steps(recipe, recipe.supernet_iterations))


def _screening(request: Request, costs: UnitCosts) -> Stage:
    networks = screened(request)
    seconds = costs.start + networks * costs.measurement
    return Stage("Measure the space", seconds, f"at most {networks} networks")


def _candidates(request: Request, costs: UnitCosts, images: int) -> Stage:
    wanted, measured = request.wanted, request.wanted * costs.measurement
    if request.accuracy == "training":
        steps, scores = steps_of_rungs(request.recipe().iterations, wanted)
        seconds = measured + steps * costs.step + scores * costs.scoring(images)
        return Stage("Train candidates", seconds, f"{wanted}, about {steps} steps in all")
    seconds = measured + wanted * costs.scoring(images)
    return Stage("Score candidates", seconds, f"{wanted} measured, on {images} images; at most")


def _landmarks(request: Request, costs: UnitCosts, images: int) -> Stage:
    effort = Effort.short(request)
    steps = effort.iterations or request.recipe().iterations
    trainings = effort.landmarks * effort.seeds
    seconds = _side_by_side(trainings, effort.jobs, steps * costs.step + costs.scoring(images))
    note = f"{trainings} times {steps} steps, {effort.jobs} side by side"
    return Stage("Check the ranking", seconds, note)


def _plain_rules(request: Request, costs: UnitCosts, images: int) -> Stage:
    """Most MACs is sought among as many random candidates as are scored, whatever else is compared.

    Scores choose between the scaling of the smallest and of the largest network, where candidates
    share weights.
    """
    scalings, scored = (1, 0) if request.accuracy == "training" else (2, 2)
    seconds = (request.wanted + scalings) * costs.measurement + scored * costs.scoring(images)
    note = f"at most {request.wanted} random candidates measured, and {scalings} scaled"
    return Stage("Follow plain rules", seconds, note)


def _random_search(request: Request, costs: UnitCosts, images: int) -> Stage:
    """What is scored has been drawn and measured for the plain rules."""
    note = f"at most {request.wanted} candidates scored, to compare with"
    return Stage("Search at random", request.wanted * costs.scoring(images), note)


def _builds(request: Request, costs: UnitCosts) -> Stage:
    """Every round of builds has a process of its own; the winner is built once more, trained."""
    networks = request.confirmation.networks
    seconds = MOST_BUILDS * (2 * costs.start + (networks + 1) * costs.measurement)
    note = f"at most {networks} networks and the winner, {MOST_BUILDS} builds of each"
    return Stage("Measure fresh builds", seconds, note)


def _fine_tunings(request: Request, costs: UnitCosts, validation: int, test: int) -> Stage:
    """Networks that the user names may lie outside the space, and are trained wholly then."""
    recipe, seeds = request.recipe(), len(request.fine_tunings)
    named = len(request.confirmation.against)
    whole = request.accuracy == "training"
    short = recipe.iterations if whole else recipe.fine_tuning().iterations
    trainings = request.confirmation.networks * seeds

    def train(networks: int, steps: int) -> float:
        each = steps * costs.step + costs.scoring(validation)
        return _side_by_side(networks * seeds, request.workers, each)

    seconds = train(request.confirmation.networks - named, short)
    seconds += train(named, recipe.iterations)
    seconds += trainings * costs.scoring(test) if test else 0.0
    note = f"at most {trainings} times {short} steps, {request.workers} side by side"
    return Stage("Fine-tune networks", seconds, note)


def _side_by_side(count: int, workers: int, seconds: float) -> float:
    return math.ceil(count / workers) * seconds


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
