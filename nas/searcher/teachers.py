"""Teachers: found where a recipe names one, or the largest network of a space, trained first.

A teacher that is trained here sees what its students may see: hidden labels stay hidden. It is kept
beside the supernets, by everything that decides its weights.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nas.accuracy.dataset import Dataset
from nas.accuracy.pseudo_labels import labelled_part
from nas.accuracy.recipe import Recipe
from nas.accuracy.teacher import Teacher, save_detector
from nas.errors import InputError
from nas.model.detector import Detector
from nas.searcher.progress import Listener
from nas.searcher.request import Workspace
from nas.searcher.team import train_network
from nas.space.architecture import Architecture, digest_of

__all__ = ["find_teacher", "load_teacher", "plain_recipe"]


def find_teacher(
    recipe: Recipe,
    largest: Architecture | None,
    dataset: Dataset,
    workspace: Workspace,
    listener: Listener,
) -> Path | None:
    """Return where the teacher of a recipe lies, after training it if need be; None without one.

    Args:
        recipe: of the student.
        largest: the network to train if the recipe names none, at the student's input size; None
            if there is no search space to take it from.
        dataset: on what.
        workspace: where trained teachers are kept.
        listener: hears how it goes.

    Raises:
        InputError: the recipe names no teacher, and there is no space.
        TrainingError: the loss of the teacher does not stay finite.
        StorageError: it cannot be written.
    """
    if not recipe.needs_teacher:
        return None
    if recipe.teacher:
        return Path(recipe.teacher)
    if largest is None:
        raise InputError(
            "Distillation and pseudo-labels need a teacher, and the recipe names none.",
            "Name a bundle or a file of weights in the recipe: teacher.",
        )
    split = labelled_part(dataset.train, recipe.pseudo_labels)
    plain = plain_recipe(recipe)
    name = digest_of([largest.canonical(), split.digest, plain.digest])
    path = workspace.cache / "teachers" / f"{name}.safetensors"
    if path.exists():
        return path
    listener.stage("Train the teacher", plain.iterations)
    checkpoint = path.with_suffix(".checkpoint")
    detector = Detector(largest, seed=plain.seed)
    train_network(detector, split, plain, listener, checkpoint)
    save_detector(detector, path)
    checkpoint.unlink(missing_ok=True)
    return path


def load_teacher(
    recipe: Recipe,
    largest: Architecture | None,
    dataset: Dataset,
    workspace: Workspace,
    listener: Listener,
) -> Teacher | None:
    """Find a teacher, and read it; args and errors as in `find_teacher`."""
    path = find_teacher(recipe, largest, dataset, workspace, listener)
    return None if path is None else Teacher.load(path, dataset.train, len(dataset.classes))


def plain_recipe(recipe: Recipe) -> Recipe:
    """Return how a teacher is trained: as long as its students, with every switch off and seed 0.

    So students with several seeds, and with several switches, have one teacher.
    """
    off = Recipe()
    names = ("distillation", "pseudo_labels", "curriculum", "adversarial", "lookahead", "stages")
    values = {name: getattr(off, name) for name in names}
    return dataclasses.replace(recipe, seed=0, teacher="", **values)
