"""Trained supernets: one per space, data set and recipe, kept for every later search."""

from __future__ import annotations

import numpy as np

from nas.accuracy.dataset import Dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress, train_supernet
from nas.model.supernet import Supernet
from nas.searcher.progress import Listener
from nas.searcher.request import Workspace
from nas.space.architecture import Architecture, digest_of
from nas.space.space import SearchSpace

__all__ = ["supernet_digest", "trained_supernet"]


def supernet_digest(space: SearchSpace, dataset: Dataset, recipe: Recipe) -> str:
    """Name the weights that training would give: they depend on nothing else."""
    return digest_of([space.digest, dataset.digest, recipe.digest])


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
    classes = len(dataset.classes)

    def sample(generator: np.random.Generator) -> Architecture:
        return space.candidate(space.sample(generator), classes).architecture

    def hear(progress: Progress) -> None:
        listener.advance(progress.iteration, f"loss {progress.loss:.2f}")

    supernet = Supernet(space.covering(classes), seed=recipe.seed)
    listener.stage("Train the supernet", recipe.iterations)
    checkpoint = path.with_suffix(".checkpoint")
    train_supernet(
        supernet,
        sample,
        space.candidate(space.anchors["max"], classes).architecture,
        dataset.train,
        recipe,
        smallest=space.candidate(space.anchors["min"], classes).architecture,
        progress=hear,
        checkpoint=checkpoint,
    )
    supernet.save(path)
    checkpoint.unlink(missing_ok=True)
    return supernet
