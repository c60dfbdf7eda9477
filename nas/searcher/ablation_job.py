"""One training of an ablation study: from scratch, scored on its engine; here or in a process.

Trainings are single-threaded, so two of them side by side finish twice as many on two cores. The
processes hear of an interruption from their parent alone: they finish their step, write their
checkpoint and stop. Whatever they were doing is continued, not repeated.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import torch

from nas import plugins
from nas.accuracy.bootstrap import average_precision, match_objects
from nas.accuracy.dataset import Annotations, Dataset
from nas.accuracy.detections import Detections
from nas.accuracy.evaluate import Accuracy, evaluate
from nas.accuracy.training import Progress, Recipe, train_detector
from nas.errors import EngineError, ExportError, NasError, TrainingError
from nas.latency.clock import Elapsed
from nas.latency.onnx_export import export_onnx
from nas.latency.runtimes.base import Runtime
from nas.model.detector import Detector, needs_nms
from nas.searcher.evaluation import engine_predictor
from nas.space.architecture import Candidate

__all__ = ["Job", "Outcome", "resampled_map", "run_jobs", "train_and_score"]

_POLL_S = 0.5
_RESAMPLES = 200
_SEED = 0  # of the resamples: equal draws for every training, so that their differences are paired

Hear = Callable[[int, str], None]
"""Called with the steps that all jobs have done together, and a few words."""


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        name: for a person.
        candidate: network and precision of the engine.
        recipe: how; its seed also decides the first weights.
        runtime: name of the runtime that builds the engine.
        checkpoint: written while training, read if it exists; the caller deletes it.
    """

    name: str
    candidate: Candidate
    recipe: Recipe
    runtime: str
    checkpoint: Path


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        accuracy: of the engine on the validation split, with its interval over images.
        resampled: mAP50-95 on each resample of the images; the draws are the same for every job.
        iterations: steps.
        seconds: wall time since the training began or was last continued, scoring included.
    """

    accuracy: Accuracy
    resampled: tuple[float, ...]
    iterations: int
    seconds: float


def train_and_score(job: Job, dataset: Dataset, hear: Callable[[Progress], None]) -> Outcome:
    """Train from scratch, or from the checkpoint, and score the engine.

    Args:
        job: what to train.
        dataset: on what; its validation split scores.
        hear: called after each step; may raise KeyboardInterrupt to stop.

    Raises:
        TrainingError: the loss does not stay finite.
        ExportError: the network has no ONNX form.
        EngineError: the engine cannot be built.
    """
    elapsed = Elapsed()
    architecture = job.candidate.architecture
    detector = Detector(architecture, seed=job.recipe.seed)
    result = train_detector(
        detector, dataset.train, job.recipe, progress=hear, checkpoint=job.checkpoint
    )
    runtime: Runtime = plugins.load("runtimes", job.runtime)()
    onnx = export_onnx(detector.deploy(), *architecture.input)
    split = dataset.validation
    with runtime.build(onnx, job.candidate.precision) as engine:
        accuracy, detections = evaluate(
            engine_predictor(engine),
            split.resized(*architecture.input),
            weights="trained",
            artifact="engine",
            nms=needs_nms(architecture),
            seed=_SEED,
        )
    resampled = resampled_map(detections, split.annotations)
    return Outcome(accuracy, resampled, result.iterations, elapsed.wall_s)


def resampled_map(
    detections: Sequence[Detections], annotations: Sequence[Annotations]
) -> tuple[float, ...]:
    """Return mAP50-95 on each of 200 resamples of the images, which depend on their number alone.

    Two networks that were scored on the same images may so be compared draw by draw: the paired
    bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).

    Args:
        detections: of each image, in pixels of the original images.
        annotations: of each image, in the same pixels.
    """
    images = len(annotations)
    generator = np.random.default_rng(_SEED)
    draws = generator.multinomial(images, np.full(images, 1 / images), _RESAMPLES)
    matches = match_objects(detections, annotations)
    per_class = np.array([average_precision(each, draws) for each in matches.values()])
    drawn = np.isfinite(per_class).any(axis=0)  # the others hold no object
    return tuple(np.nanmean(per_class[:, drawn], axis=0).tolist())


def run_jobs(
    jobs: Sequence[Job], dataset: Dataset, workers: int, hear: Hear
) -> Generator[tuple[Job, Outcome | NasError]]:
    """Run jobs, and yield each as soon as it has ended, with what came of it.

    A network that cannot be trained or built yields its error, and the others go on.

    Args:
        jobs: in this order, as far as several workers keep one.
        dataset: on what they train.
        workers: processes; 1 runs them in this one.
        hear: called often; may raise KeyboardInterrupt to stop.

    Raises:
        KeyboardInterrupt: the user stopped; checkpoints are written first.
        TrainingError: a process was killed.
    """
    if min(workers, len(jobs)) > 1:
        yield from _in_processes(jobs, dataset, min(workers, len(jobs)), hear)
        return
    before = 0
    for job in jobs:

        def progress(at: Progress, before: int = before, name: str = job.name) -> None:
            hear(before + at.iteration, f"{name}: loss {at.loss:.2f}")

        yield job, _attempt(job, dataset, progress)
        before += job.recipe.iterations


def _in_processes(
    jobs: Sequence[Job], dataset: Dataset, workers: int, hear: Hear
) -> Generator[tuple[Job, Outcome | NasError]]:
    context = multiprocessing.get_context("spawn")
    stop, steps = context.Event(), context.Value("q", 0)
    pool = ProcessPoolExecutor(
        workers, context, initializer=_open_worker, initargs=(dataset, stop, steps)
    )
    try:
        futures = {pool.submit(_work, job): job for job in jobs}
        waiting: set[Future[Outcome | NasError]] = set(futures)
        while waiting:
            ended, waiting = wait(waiting, _POLL_S, FIRST_COMPLETED)
            yield from ((futures[future], _result(future)) for future in ended)
            done = len(futures) - len(waiting)
            hear(steps.value, f"{done} of {len(futures)} trained, {workers} at a time")
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _result(future: Future[Outcome | NasError]) -> Outcome | NasError:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "A process that trained was killed before it had a result.",
            "If memory ran out, run one job at a time; the same command continues the study.",
        ) from error


def _attempt(job: Job, dataset: Dataset, hear: Callable[[Progress], None]) -> Outcome | NasError:
    try:
        return train_and_score(job, dataset, hear)
    except (TrainingError, ExportError, EngineError) as error:
        return error


@dataclass(frozen=True)
class _Worker:
    """What a process keeps between jobs."""

    dataset: Dataset
    stop: Event
    steps: Synchronized[int]


_worker: list[_Worker] = []  # at most one; a process pool has no other place for it


def _open_worker(dataset: Dataset, stop: Event, steps: Synchronized[int]) -> None:
    # Ctrl-C reaches every process of a terminal; here the parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _worker[:] = [_Worker(dataset, stop, steps)]


def _work(job: Job) -> Outcome | NasError:
    (worker,) = _worker
    last = 0

    def hear(at: Progress) -> None:
        nonlocal last
        with worker.steps.get_lock():
            worker.steps.value += at.iteration - last
        last = at.iteration
        if worker.stop.is_set():
            raise KeyboardInterrupt

    if worker.stop.is_set():
        raise KeyboardInterrupt
    return _attempt(job, worker.dataset, hear)
