"""From a front to a network that a user can deploy: confirmed, compared, written.

A search ranks candidates with shared weights and measures them untrained. What is delivered is
measured and scored itself: the ONNX graph in the bundle is the one whose latency and accuracies
stand beside it, and a graph that may break the budget on fresh measurements is not delivered.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from nas.accuracy.dataset import Dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.teacher import Teacher
from nas.errors import BudgetError
from nas.model.detector import Detector
from nas.results.bench import Bench
from nas.results.bundle import Bundle, Provenance, write_bundle
from nas.results.confirming import Confirmer, Winner
from nas.results.figures import front_figure, write_figure
from nas.results.worth import KIND, write_worth
from nas.searcher.engines import doubt_about
from nas.searcher.progress import Listener
from nas.searcher.result import StudyResult
from nas.searcher.room import require_room
from nas.searcher.setting import Setting, installed_versions
from nas.searcher.team import planned_detector, train_network
from nas.space.architecture import Architecture, Candidate

__all__ = ["Delivered", "deliver", "train_alone"]


@dataclass(frozen=True)
class Delivered:
    """A network that was handed over.

    Attributes:
        trial: of its study; None if it was trained on its own, or a plain rule chose it.
        bundle: what was delivered.
        folder: where it lies.
    """

    trial: int | None
    bundle: Bundle
    folder: Path


def deliver(
    setting: Setting, result: StudyResult, listener: Listener, trial: int | None = None
) -> Delivered:
    """Deliver the winner of a study, or one trial.

    Winners are chosen among the front and what plain rules take (`nas.results.confirming`); a named
    trial is confirmed alone.

    Args:
        setting: of the search.
        result: the study.
        listener: hears how it goes.
        trial: deliver this one, or fail.

    Raises:
        StudyError: the study has no candidate under the budget, or no such trial.
        BudgetError: none surely keeps the budget when it is built and measured again.
        StorageError: the bundle cannot be written.
    """
    rows = [result.row(trial)] if trial is not None else _in_order(result)
    confirmer = Confirmer(setting, result, listener)
    winner = confirmer.winner(rows, compared=trial is None)
    if winner is None:
        confirmer.builds.end()
        raise BudgetError(
            f"None of the {len(rows)} candidates surely keeps the budget of {result.budget} when "
            "measured again.",
            "Search with a budget that is a few percent larger, or where nothing else runs: builds "
            "differ less there.",
        )
    worth = confirmer.worth(winner) if trial is None else None
    if worth is not None:
        setting.database.add_report(result.study, KIND, worth.as_dict())
    bundle = Bundle(
        winner.contestant.candidate,
        winner.detector,
        winner.graph.engine,
        winner.rebuilt.latency,
        confirmer.accuracies(winner),
        _provenance_of(setting, result, winner),
        result.trust,
        worth,
    )
    _warn(bundle, listener)
    delivered = _write(setting, result, bundle, named=trial is not None)
    confirmer.builds.end()
    return delivered


def train_alone(
    architecture: Architecture,
    bench: Bench,
    recipe: Recipe,
    folder: Path,
    listener: Listener,
    teacher: Teacher | None = None,
) -> Delivered:
    """Train an architecture from scratch, and write its bundle.

    Args:
        architecture: what to train; the data set decides the number of classes.
        bench: data set, runtime and oracle.
        recipe: how to train.
        folder: where the bundle is written.
        listener: hears how it goes.
        teacher: for a recipe that needs one.

    Raises:
        TrainingError: the loss does not stay finite.
        StorageError: the bundle cannot be written.
    """
    dataset = bench.dataset
    if architecture.classes != len(dataset.classes):
        listener.say(
            f"The architecture has {architecture.classes} classes and the data set "
            f"{len(dataset.classes)}: the head is built for the data set."
        )
        data = {**architecture.canonical(), "classes": len(dataset.classes)}
        architecture = Architecture.parse(data)
    candidate = Candidate(architecture=architecture)
    detector = Detector(architecture, seed=recipe.seed)
    listener.stage("Train", recipe.iterations)
    checkpoint = folder / "training.checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    require_room(planned_detector(architecture, dataset, recipe), folder)
    train_network(detector, dataset.train, recipe, listener, checkpoint, teacher)
    splits = [dataset.validation, *([dataset.test] if dataset.test else [])]
    graph = bench.graph(detector, candidate)
    bundle = Bundle(
        candidate,
        detector,
        graph.engine,
        bench.latency(graph, candidate),
        tuple(bench.score(graph, candidate, split, "trained") for split in splits),
        _provenance(dataset, recipe.seed),
    )
    _warn(bundle, listener)
    write_bundle(bundle, folder)
    checkpoint.unlink(missing_ok=True)
    return Delivered(None, bundle, folder)


def _warn(bundle: Bundle, listener: Listener) -> None:
    """Say so if the engine that is delivered departs from its network."""
    if doubt := doubt_about(bundle.accuracies[-1], bundle.candidate.precision):
        listener.say(doubt, warning=True)


def _provenance_of(setting: Setting, result: StudyResult, winner: Winner) -> Provenance:
    return dataclasses.replace(
        _provenance(setting.dataset, setting.request.seed),
        study=result.study,
        trial=winner.contestant.trial,
        rule=winner.contestant.rule,
        budget=str(result.budget),
    )


def _provenance(dataset: Dataset, seed: int) -> Provenance:
    return Provenance(
        study="",
        trial=None,
        budget="",
        data={"name": dataset.name, "digest": dataset.digest},
        classes=dataset.classes,
        seed=seed,
        versions=installed_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _write(setting: Setting, result: StudyResult, bundle: Bundle, *, named: bool) -> Delivered:
    trial = bundle.provenance.trial
    folder = setting.request.workspace.bundle(result.study)
    folder = folder / f"trial-{trial}" if named else folder
    write_bundle(bundle, folder)
    result.front.to_csv(folder / "front.csv", index=False)
    write_figure(front_figure(result, trial), folder / "front.html")
    if bundle.worth is not None:
        write_worth(bundle.worth, folder)
    return Delivered(trial, bundle, folder)


def _in_order(result: StudyResult) -> list[pd.Series]:
    result.row()  # an empty front is an error
    return [row for _, row in result.front.iterrows()]
