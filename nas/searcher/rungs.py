"""Rungs of training, for a search without shared weights: most candidates are trained for a ninth.

Every candidate is trained on its own, up to the first rung of the schedule. The best third of a
rung goes on to the next one, from its checkpoint: asynchronous successive halving (Li et al., A
System for Massively Parallel Hyperparameter Tuning, MLSys 2020, algorithm 2), which promotes as
soon as a rung has someone to promote, and asks for a new candidate otherwise. Accuracy and latency
both count, so the best are the first non-dominated ones, as in NSGA-II (Deb et al. 2002, section
III): front by front, and within a front by crowding distance.

- The learning rate follows the schedule of the whole training, whichever rung is next. So nothing
  is trained twice, and the last rung is the very network that plain training gives. What is scored
  is the moving average of the weights, which does not suffer from the high rate of an early rung:
  on the embedded digits it is far ahead of a schedule that is shortened to the rung (docs/LOG.md).
- A score of an early rung is compared within its rung alone. Optuna is told of it as PRUNED, with
  the score as an attribute: samplers learn accuracies of the last rung, and no others.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.accuracy.dataset import Dataset
from nas.accuracy.evaluate import Accuracy
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress, train_detector
from nas.latency.clock import Elapsed
from nas.latency.latency import Latency
from nas.latency.runtimes.base import Runtime
from nas.model.detector import Detector
from nas.searcher.database import Database
from nas.searcher.engines import artifact_of, doubt_about, score_engine, trained_graph
from nas.searcher.estimate import Estimate
from nas.searcher.progress import Listener
from nas.searcher.study import Study
from nas.searcher.team import Due
from nas.searcher.trials import Told
from nas.space.architecture import Architecture, Candidate
from nas.space.front import front_indices

__all__ = ["OwnTraining", "best_first", "rungs_of", "steps_of_rungs"]

ETA = 3
"""One of so many is promoted."""

_RUNGS = 3


def rungs_of(iterations: int) -> tuple[int, ...]:
    """Return the steps at which a training is scored: a ninth, a third and all."""
    steps = (iterations // ETA**power for power in reversed(range(_RUNGS)))
    return tuple(sorted({step for step in steps if step}))


def steps_of_rungs(iterations: int, candidates: int) -> tuple[int, int]:
    """Return about how many steps so many candidates are trained for, and how often scored."""
    steps = scores = below = 0
    for step in rungs_of(iterations):
        steps, scores, below = steps + candidates * (step - below), scores + candidates, step
        candidates = -(-candidates // ETA)
    return steps, scores


def best_first(accuracy: ArrayLike, latency_ms: ArrayLike) -> NDArray[np.intp]:
    """Order points: by non-dominated front, and in a front by crowding distance, largest first.

    Args:
        accuracy: (n,) larger is better.
        latency_ms: (n,) smaller is better.

    Returns:
        (n,) indices.
    """
    up, down = np.asarray(accuracy, np.float64), np.asarray(latency_ms, np.float64)
    left, order = np.arange(len(up)), np.zeros(0, np.intp)
    while len(left):
        front = front_indices(up[left], down[left])
        crowding = _crowding(up[left][front]) + _crowding(down[left][front])
        order = np.concatenate([order, left[front[np.argsort(-crowding, kind="stable")]]])
        left = np.delete(left, front)
    return order


def _crowding(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance between the neighbours of each value, as a share of the range."""
    order, distance = np.argsort(values), np.full(len(values), np.inf)
    if len(values) > 2 and np.ptp(values) > 0:
        distance[order[1:-1]] = (values[order[2:]] - values[order[:-2]]) / np.ptp(values)
    return distance


class OwnTraining:
    """Judges candidates by training each on its own, rung by rung.

    Args:
        dataset: trains, and scores on its validation split.
        runtime: builds the engines that are scored.
        database: keeps the accuracies of whole trainings.
        recipe: how to train; its seed also decides the first weights.
        digest: of data and recipe: which weights these are.
        folder: of the study alone, where checkpoints are kept between rungs.
        listener: hears how it goes.

    Attributes:
        weights: which weights in engines of which runtime, for the database.
    """

    def __init__(
        self,
        dataset: Dataset,
        runtime: Runtime,
        database: Database,
        recipe: Recipe,
        digest: str,
        folder: Path,
        listener: Listener,
    ) -> None:
        self.weights = f"{digest}@{runtime.name}"
        self._dataset = dataset
        self._runtime = runtime
        self._database = database
        self._recipe = recipe
        self._digest = digest
        self._folder = folder
        self._listener = listener
        self._rungs = rungs_of(recipe.iterations)
        self._promoted: set[tuple[str, int]] = set()

    def score(
        self,
        candidate: Candidate,
        latency: Latency,  # noqa: ARG002 - others compare with what is as fast
        study: Study,
    ) -> tuple[int, Accuracy] | Estimate:
        """Train a candidate to the rung after those that the study knows it on, and score it there.

        Raises:
            TrainingError: the loss does not stay finite.
            ExportError: the network has no ONNX form.
            EngineError: see `score_engine`.
            KeyboardInterrupt: the user stopped; the checkpoint is written first.
        """
        if stored := self.known(candidate):
            return stored
        done = sum(candidate.digest in study.at_rung(step) for step in self._rungs)
        step = self._rungs[min(done, len(self._rungs) - 1)]
        elapsed = Elapsed()
        accuracy = self._accuracy(candidate, step)
        if step < self._rungs[-1]:
            assert accuracy.low is not None
            assert accuracy.high is not None
            return Estimate(
                *(accuracy.map50_95, accuracy.low, accuracy.high),
                fidelity="rung",
                images=accuracy.images,
                iterations=step,
            )
        row = self._database.add_accuracy(
            *(candidate.architecture.digest, candidate.precision, accuracy),
            data=self._dataset.digest,
            weights_digest=self.weights,
            seconds=elapsed.wall_s,
        )
        return row, accuracy

    def promotion(self, study: Study, *, closing: bool) -> Told | None:
        """Return the candidate that goes on to the next rung, from the highest rung that has one.

        Args:
            study: what is known.
            closing: no candidate is asked for any more, so that a rung promotes the best third
                rounded up: the last one is not empty then.
        """
        for step, following in reversed(list(zip(self._rungs, self._rungs[1:], strict=False))):
            entries = list(study.at_rung(step).values())
            share = -(-len(entries) // ETA) if closing else len(entries) // ETA
            order = best_first(
                np.array([one.estimate for one in entries], np.float64),
                np.array([one.latency_ms for one in entries], np.float64),
            )
            for told in [entries[int(index)] for index in order[:share]]:
                if not self._went_on(told, following, study):
                    self._promoted.add((told.digest, following))
                    return told
        return None

    def end(self) -> None:
        """Remove the checkpoints. A study that is asked for more trains what it promotes anew."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _went_on(self, told: Told, step: int, study: Study) -> bool:
        known = study.known(told.digest)
        return (
            told.digest in study.at_rung(step)
            or (known is not None and known.accuracy is not None)
            or (told.digest, step) in self._promoted
        )

    def known(self, candidate: Candidate) -> tuple[int, Accuracy] | None:
        """Return what is stored of a whole training: the accuracy and its row."""
        return self._database.find_accuracy(
            *(candidate.architecture.digest, candidate.precision),
            data=self._dataset.digest,
            split="validation",
            weights="trained",
            artifact=artifact_of(self._runtime),
            weights_digest=self.weights,
        )

    def _accuracy(self, candidate: Candidate, step: int) -> Accuracy:
        detector = self._trained(candidate.architecture, step)
        graph = trained_graph(detector, candidate, self._dataset.train)
        accuracy, _ = score_engine(
            graph, candidate, self._runtime, self._dataset.validation, weights="trained"
        )
        if doubt := doubt_about(accuracy, candidate.precision):
            self._listener.say(doubt, warning=True)
        return accuracy

    def _trained(self, architecture: Architecture, step: int) -> Detector:
        """Train to a rung, from its own checkpoint, or else from that of the rung below."""
        detector = Detector(architecture, seed=self._recipe.seed)
        path, *below = [
            self._folder / self._digest / architecture.digest / f"{one}.checkpoint"
            for one in reversed(self._rungs[: self._rungs.index(step) + 1])
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        nearest = next((one for one in below if one.exists()), None)
        if nearest is not None and not path.exists():
            # Copied whole before it takes its name: a killed process leaves no half of it.
            partial = path.with_suffix(".partial")
            shutil.copyfile(nearest, partial)
            partial.replace(path)

        def hear(at: Progress) -> None:
            if at.note:
                self._listener.say(at.note, warning=True)

        train_detector(
            *(detector, self._dataset.train, self._recipe),
            progress=hear,
            checkpoint=path,
            due=Due(),
            until=step,
        )
        for one in below:
            one.unlink(missing_ok=True)
        return detector
