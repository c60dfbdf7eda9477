"""What one of each thing takes that a search or a training does many times, tried out here and now.

A network takes a few steps of training, is prepared, built and scored on a few images, and its
latency is measured. Nothing is assumed of the machine, and nothing about the network is stored.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress
from nas.latency.clock import Elapsed
from nas.latency.oracle import LatencyOracle, Network
from nas.latency.runtimes.base import Runtime
from nas.model.detector import Detector
from nas.model.supernet import recalibrate
from nas.searcher.engines import TrainedGraph, score_engine, trained_graph
from nas.searcher.inherited import recalibration_images
from nas.searcher.latency_judge import untrained_onnx
from nas.searcher.room import Planned
from nas.searcher.team import planned_detector
from nas.space.architecture import Candidate

__all__ = ["UnitCosts", "training_seconds"]

_STEPS = 6  # timed, after one that builds what the others use
_IMAGES = 32  # scored, to tell how long one takes
_RECALIBRATED = 256  # images that recalibration draws from, so that not all have to be resized


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """Wall seconds of one of each, for one network.

    Attributes:
        step: of training it, with a whole batch.
        preparation: statistics recalibrated, exported; once for each scoring.
        image: found objects in, and scored.
        start: of a process that measures, until it has its reference network.
        measurement: exported, built and timed.
    """

    step: float
    preparation: float
    image: float
    start: float
    measurement: float

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        dataset: Dataset,
        recipe: Recipe,
        runtime: Runtime,
        oracle: LatencyOracle,
    ) -> UnitCosts:
        """Try a network out; untrained, as what it finds does not change how long it takes.

        Args:
            candidate: the network, and the precision of its engine.
            dataset: trains and scores.
            recipe: how to train.
            runtime: builds the engine that is scored.
            oracle: measures.

        Raises:
            NasError: it cannot be trained, exported, built or measured.
        """
        planned = planned_detector(candidate.architecture, dataset, recipe)
        step = _seconds_per_step(planned, planned.usual, largest_only=0.0)
        preparation, graph = _prepared(candidate, dataset.train)
        image = _per_image(candidate, graph, runtime, dataset.validation)
        first, later = _measured(candidate, oracle), _measured(candidate, oracle)
        return cls(
            step=step,
            preparation=preparation,
            image=image,
            start=max(first - later, 0.0),
            measurement=later,
        )

    def scoring(self, images: int) -> float:
        """Return what it takes to score a network on so many images."""
        return self.preparation + images * self.image


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


def _prepared(candidate: Candidate, train: Split) -> tuple[float, TrainedGraph]:
    train = train.subset("train", range(min(_RECALIBRATED, len(train))))
    train.resized(*candidate.architecture.input)  # which is counted by itself
    elapsed = Elapsed()
    detector = Detector(candidate.architecture)
    recalibrate(detector, recalibration_images(train, candidate.architecture))
    graph = trained_graph(detector, candidate, train)
    return elapsed.wall_s, graph


def _per_image(candidate: Candidate, graph: TrainedGraph, runtime: Runtime, split: Split) -> float:
    """Score the images with most objects: a split without any cannot be scored."""
    order = sorted(range(len(split)), key=lambda index: -len(split.annotations[index]))
    some = split.subset(split.name, sorted(order[:_IMAGES]))
    elapsed = Elapsed()
    score_engine(graph, candidate, runtime, some, weights="inherited")
    return elapsed.wall_s / len(some)


def _measured(candidate: Candidate, oracle: LatencyOracle) -> float:
    architecture, elapsed = candidate.architecture, Elapsed()
    graph = untrained_onnx(architecture)
    network = Network(architecture.digest, lambda: graph, architecture)
    oracle.confirm(network, graph, candidate.precision)
    return elapsed.wall_s
