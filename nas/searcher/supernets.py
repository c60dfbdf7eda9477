"""Trained supernets: one per space, data set and recipe, kept for every later search.

A re-targeted study has its parent's, whatever precisions its own space is in: weights have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.distributed import ALONE
from nas.accuracy.recipe import Recipe
from nas.accuracy.sampling import Draws, Sample
from nas.accuracy.teacher import Teacher
from nas.accuracy.training import Progress, train_supernet
from nas.errors import StudyError
from nas.files import write_text
from nas.latency.clock import Elapsed
from nas.model.detector import profile
from nas.model.supernet import Supernet
from nas.searcher.commands import command_on
from nas.searcher.inherited import MOST_EARLY_BYTES
from nas.searcher.progress import Listener
from nas.searcher.request import Request, Workspace
from nas.searcher.room import Hear, Planned, Steps, require_room
from nas.searcher.setting import Setting
from nas.searcher.teachers import load_teacher
from nas.searcher.team import Part, own_part, train_together
from nas.space.architecture import digest_of
from nas.space.space import SearchSpace

__all__ = [
    "planned_supernet",
    "require_inherited",
    "subnet_draws",
    "supernet_digest",
    "supernet_of",
    "train_afresh",
    "trained_supernet",
    "training_seconds",
    "weights_of",
]


_SIZE_DRAWS = 101  # of subnets, to find the sizes of images


def supernet_digest(space: SearchSpace, dataset: Dataset, recipe: Recipe) -> str:
    """Name the weights that training would give: they depend on nothing else."""
    return digest_of([space.digest, dataset.digest, recipe.digest])


def weights_of(setting: Setting) -> str:
    """Return the digest of the weights that a search scores candidates with."""
    request = setting.request
    if request.parent:
        return request.parent.supernet
    if request.accuracy == "training":
        return digest_of(["trained alone", setting.dataset.digest, request.recipe().digest])
    return supernet_digest(setting.space, setting.dataset, request.recipe())


def supernet_of(setting: Setting, listener: Listener) -> Supernet:
    """Load the supernet of a search, or train it; a re-targeted study never trains.

    Raises:
        StudyError: the supernet that was handed down is not there.
        StorageError, TrainingError, KeyboardInterrupt: as `trained_supernet`.
    """
    request = setting.request
    if request.parent:
        return Supernet.load(require_inherited(request))
    return trained_supernet(
        setting.space, setting.dataset, request.recipe(), request.workspace, listener
    )


def require_inherited(request: Request) -> Path:
    """Return where the supernet lies that a re-targeted study takes from its parent.

    Raises:
        StudyError: it is not there.
    """
    parent = request.parent
    if parent is None:
        raise StudyError(f"The study {request.study!r} has no parent.", "Search without one.")
    path = request.workspace.supernet(parent.supernet)
    if not path.exists():
        raise StudyError(
            f"Re-targeting trains nothing, so the supernet of {parent.study!r} must be in {path}, "
            "and is not.",
            "Search afresh, with another --study, or none; or train it again with: "
            + command_on(request, "search", "--resume", study=parent.study),
        )
    return path


def subnet_draws(space: SearchSpace, classes: int, recipe: Recipe) -> Draws:
    """Return how a recipe draws subnets; what its strata are of is MACs.

    The supernet serves every device, so it is trained for none: MACs, unlike a latency, are the
    same everywhere.
    """
    return Draws(
        space,
        classes,
        seed=recipe.seed,
        fair=recipe.fair,
        strata=recipe.strata,
        cost=lambda architecture: profile(architecture).macs,
    )


def trained_supernet(
    space: SearchSpace, dataset: Dataset, recipe: Recipe, workspace: Workspace, listener: Listener
) -> Supernet:
    """Load the supernet of a space and a data set, or train it, from a checkpoint if there is one.

    Raises:
        StorageError: it cannot be read or written.
        TrainingError: the loss does not stay finite.
        KeyboardInterrupt: the user stopped; the checkpoint is written first.
    """
    path = workspace.supernet(supernet_digest(space, dataset, recipe))
    if path.exists():
        return Supernet.load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    require_room(planned_supernet(space, dataset, recipe), path.parent)
    classes = len(dataset.classes)
    largest = space.candidate(space.anchors["max"], classes).architecture
    teacher = load_teacher(recipe, largest, dataset, workspace, listener)
    listener.stage("Train the supernet", recipe.supernet_iterations)
    checkpoint = path.with_suffix(".checkpoint")
    training = partial(
        train_afresh, space, classes, dataset.train, recipe, checkpoint, teacher=teacher
    )
    with _charged(_cost_path(path)):
        supernet = train_together(training, listener)
    supernet.save(path)
    for written in (checkpoint, _of_last_stage(checkpoint)):
        written.unlink(missing_ok=True)
    return supernet


def train_afresh(
    space: SearchSpace,
    classes: int,
    split: Split,
    recipe: Recipe,
    checkpoint: Path | None,
    part: Part,
    teacher: Teacher | None = None,
) -> Supernet:
    """Make the supernet of a space and train it, in the stages of the recipe.

    Args:
        space: covered by the supernet.
        classes: of the data set.
        split: what to learn from.
        recipe: how.
        checkpoint: read and written by the first stage, and a file beside it by the last; None
            keeps none. They are left for the caller to delete.
        part: of this process.
        teacher: for a recipe that needs one.

    Raises:
        TrainingError, StorageError, KeyboardInterrupt: see `train_supernet`.
    """
    together, apart = recipe.by_size()
    supernet = Supernet(space.covering(classes), seed=recipe.seed).to(part.device)
    _train(supernet, space, classes, split, together, checkpoint, part, teacher)
    if apart is not None:
        supernet, before = supernet.split(), together.iterations
        later = replace(part, progress=part.progress and partial(_later, part.progress, before))
        path = checkpoint and _of_last_stage(checkpoint)
        _train(supernet, space, classes, split, apart, path, later)
    return supernet.to("cpu")


def planned_supernet(space: SearchSpace, dataset: Dataset, recipe: Recipe) -> Planned:
    """Return the training of a supernet, to find out what it will take."""
    classes, part = len(dataset.classes), own_part()
    draws = subnet_draws(space, classes, recipe)
    largest = space.candidate(space.anchors["max"], classes).architecture
    generator = np.random.default_rng(0)
    sizes = {largest.input, *(draws(number, generator).input for number in range(_SIZE_DRAWS))}
    highest = largest.at_input(max(sizes, key=math.prod))
    together, apart = recipe.by_size()

    def steps(sample: Sample) -> Steps:
        def take(
            split: Split, recipe: Recipe, path: Path | None, progress: Hear | None = None
        ) -> None:
            supernet = Supernet(space.covering(classes), seed=recipe.seed).to(part.device)
            alone = Part(ALONE, part.device, progress)
            _train(supernet, space, classes, split, recipe, path, alone, sample=sample)

        return take

    return Planned(
        steps(lambda _step, _generator: highest),
        steps(draws),
        dataset,
        together,
        tuple(sorted(sizes)),
        part.device,
        part.processes.count,
        iterations=recipe.supernet_iterations,
        copies=1 if apart is None else len(sizes),
        kept_later=MOST_EARLY_BYTES,
    )


def _of_last_stage(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(f".apart{checkpoint.suffix}")


def _later(hear: Callable[[Progress], None], before: int, progress: Progress) -> None:
    iteration, total = progress.iteration + before, progress.total + before
    hear(replace(progress, iteration=iteration, total=total))


def _train(
    supernet: Supernet,
    space: SearchSpace,
    classes: int,
    split: Split,
    recipe: Recipe,
    checkpoint: Path | None,
    part: Part,
    teacher: Teacher | None = None,
    sample: Sample | None = None,
) -> None:
    train_supernet(
        supernet,
        sample or subnet_draws(space, classes, recipe),
        space.candidate(space.anchors["max"], classes).architecture,
        split,
        recipe,
        smallest=space.candidate(space.anchors["min"], classes).architecture,
        teacher=teacher,
        progress=part.progress,
        checkpoint=checkpoint,
        due=part.due,
        processes=part.processes,
    )


def training_seconds(workspace: Workspace, digest: str) -> float | None:
    """Return the wall seconds that a supernet's training took; None if nobody wrote them down."""
    path = _cost_path(workspace.supernet(digest))
    return float(path.read_text(encoding="utf-8")) if path.exists() else None


def _cost_path(supernet: Path) -> Path:
    return supernet.with_suffix(".seconds")


@contextmanager
def _charged(path: Path) -> Iterator[None]:
    """Add the wall seconds of the block to a file: a training may be continued several times."""
    elapsed = Elapsed()
    try:
        yield
    finally:
        before = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0
        write_text(path, f"{before + elapsed.wall_s:.3f}\n")
