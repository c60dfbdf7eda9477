"""From a front to a network that a user can deploy: fine-tune, build, measure again, score once.

A search ranks candidates with shared weights and measures them untrained. What is delivered is
measured and scored itself: the ONNX graph in the bundle is the one whose latency and accuracies
stand beside it, and a graph that may break the budget on that fresh measurement is not delivered.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from nas.accuracy.dataset import Dataset
from nas.accuracy.evaluate import Accuracy
from nas.accuracy.recipe import Recipe
from nas.accuracy.teacher import Teacher
from nas.errors import BudgetError
from nas.latency.latency import Latency
from nas.model.detector import Detector
from nas.results.bench import Bench
from nas.results.bundle import Bundle, Provenance, write_bundle
from nas.results.figures import front_figure, write_figure
from nas.searcher.engines import TrainedGraph, doubt_about
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.judges import own_training
from nas.searcher.progress import Listener
from nas.searcher.result import StudyResult, candidate_of
from nas.searcher.room import require_room
from nas.searcher.rungs import OwnTraining
from nas.searcher.setting import Setting, installed_versions
from nas.searcher.supernets import supernet_of, weights_of
from nas.searcher.team import planned_detector, train_network
from nas.space.architecture import Architecture, Candidate

__all__ = ["Delivered", "deliver", "train_alone"]


@dataclass(frozen=True)
class Delivered:
    """A network that was handed over.

    Attributes:
        trial: of its study; None if it was trained on its own.
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

    The candidates of the front are tried in the order of their score until one keeps the budget on
    a fresh measurement of the trained graph, interval included.

    Args:
        setting: of the search.
        result: the study.
        listener: hears how it goes.
        trial: deliver this one, or fail.

    Raises:
        StudyError: the study has no candidate under the budget, or no such trial.
        BudgetError: none keeps the budget when measured again.
        StorageError: the bundle cannot be written.
    """
    rows = [result.row(trial)] if trial is not None else _in_order(result)
    maker = _Maker(setting, result, listener)
    for row in rows:
        bundle = maker.make(row)
        if bundle is not None:
            return _write(setting, result, bundle, int(row["trial"]), named=trial is not None)
    raise BudgetError(
        f"None of the {len(rows)} candidates surely keeps the budget of {result.budget} when "
        "measured again.",
        "Search with a budget that is a few percent larger.",
    )


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


class _Maker:
    """Makes the bundle of a candidate from the supernet's weights."""

    def __init__(self, setting: Setting, result: StudyResult, listener: Listener) -> None:
        self._setting = setting
        self._dataset = setting.dataset
        self._result = result
        self._listener = listener
        self._recipe = setting.request.recipe()
        self._bench = Bench(setting.dataset, setting.runtime, setting.oracle)
        self._judge: AccuracyJudge | OwnTraining
        if setting.request.accuracy == "training":
            self._judge = own_training(setting, listener)
        else:
            self._judge = AccuracyJudge(
                supernet_of(setting, listener),
                weights_of(setting),
                setting.dataset,
                setting.runtime,
                setting.database,
                listener,
                setting.request.workspace.statistics,
            )

    def make(self, row: pd.Series) -> Bundle | None:
        """Fine-tune, measure and score a candidate, or return None if it may break the budget."""
        candidate = candidate_of(row, self._setting.database)
        trial = int(row["trial"])
        inherited = self._judge.detector(candidate.architecture)
        graph = self._bench.graph(inherited, candidate)
        if self._latency(trial, graph, candidate) is None:
            return None  # before any training is spent on it
        if self._setting.request.accuracy == "training":
            validation = self._bench.score(graph, candidate, self._dataset.validation, "trained")
            detector, accuracies = inherited, [validation]
        else:
            detector, graph, accuracies = self._fine_tuned(inherited, graph, candidate)
        latency = self._latency(trial, graph, candidate)
        if latency is None:
            return None
        if self._dataset.test is not None:
            weights = accuracies[-1].weights
            accuracies.append(self._bench.score(graph, candidate, self._dataset.test, weights))
        self._store(candidate, accuracies)
        bundle = Bundle(
            candidate,
            detector,
            graph.engine,
            latency,
            tuple(accuracies),
            self._provenance(trial),
            self._result.trust,
        )
        _warn(bundle, self._listener)
        return bundle

    def _fine_tuned(
        self, inherited: Detector, graph: TrainedGraph, candidate: Candidate
    ) -> tuple[Detector, TrainedGraph, list[Accuracy]]:
        """Train a copy further; keep whichever is better on validation, with its graph."""
        validation = self._dataset.validation
        recipe = self._recipe.fine_tuning()
        before = self._bench.score(graph, candidate, validation, "inherited")
        self._listener.stage("Fine-tune the winner", recipe.iterations)
        tuned = copy.deepcopy(inherited)
        train_network(tuned, self._dataset.train, recipe, self._listener)
        tuned_graph = self._bench.graph(tuned, candidate)
        after = self._bench.score(tuned_graph, candidate, validation, "fine-tuned")
        if after.map50_95 < before.map50_95:
            self._listener.say(
                f"Fine-tuning did not help ({before.map50_95:.3f} to {after.map50_95:.3f} on "
                "validation): the inherited weights are delivered."
            )
            return inherited, graph, [before]
        return tuned, tuned_graph, [before, after]

    def _latency(self, trial: int, graph: TrainedGraph, candidate: Candidate) -> Latency | None:
        """Measure a graph; None, and a line to read, if it may break the budget."""
        budget = self._result.budget
        latency = self._bench.latency(graph, candidate)
        # Where nothing is measured nothing is promised; few estimates would be below it for sure.
        surest = latency.high_ms if self._setting.oracle.measures else latency.ms
        if budget.admits(surest):
            return latency
        self._listener.say(
            f"Trial {trial} takes {latency.ms:.3f} ms [{latency.low_ms:.3f}, "
            f"{latency.high_ms:.3f}] when {latency.source} again, which may break the budget of "
            f"{budget}: it is not delivered.",
            warning=True,
        )
        return None

    def _store(self, candidate: Candidate, accuracies: list[Accuracy]) -> None:
        for accuracy in accuracies:
            if accuracy.weights != "inherited" or accuracy.split == "test":
                self._setting.database.add_accuracy(
                    candidate.architecture.digest,
                    candidate.precision,
                    accuracy,
                    data=self._dataset.digest,
                    weights_digest=self._judge.weights,
                )

    def _provenance(self, trial: int) -> Provenance:
        return dataclasses.replace(
            _provenance(self._dataset, self._setting.request.seed),
            study=self._result.study,
            trial=trial,
            budget=str(self._result.budget),
        )


def _warn(bundle: Bundle, listener: Listener) -> None:
    """Say so if the engine that is delivered departs from its network."""
    if doubt := doubt_about(bundle.accuracies[-1], bundle.candidate.precision):
        listener.say(doubt, warning=True)


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


def _write(
    setting: Setting, result: StudyResult, bundle: Bundle, trial: int, *, named: bool
) -> Delivered:
    folder = setting.request.workspace.bundle(result.study)
    folder = folder / f"trial-{trial}" if named else folder
    write_bundle(bundle, folder)
    result.front.to_csv(folder / "front.csv", index=False)
    write_figure(front_figure(result, trial), folder / "front.html")
    return Delivered(trial, bundle, folder)


def _in_order(result: StudyResult) -> list[pd.Series]:
    result.row()  # an empty front is an error
    return [row for _, row in result.front.iterrows()]
