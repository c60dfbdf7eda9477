"""One training of a network, scored on its engine; here or in a process.

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

import torch
from safetensors.torch import load_file, save

from nas import plugins
from nas.accuracy.bootstrap import resampled_map
from nas.accuracy.dataset import Dataset
from nas.accuracy.evaluate import Accuracy, Weights
from nas.accuracy.recipe import Recipe
from nas.accuracy.teacher import Teacher
from nas.accuracy.training import Progress, train_detector
from nas.errors import EngineError, ExportError, InputError, NasError, TrainingError
from nas.files import write_atomically
from nas.latency.clock import Elapsed
from nas.latency.runtimes.base import Runtime
from nas.latency.runtimes.literal import LiteralRuntime
from nas.model.detector import Detector
from nas.searcher.engines import score_engine, trained_graph
from nas.searcher.memory import PeakMemory
from nas.searcher.team import Due
from nas.space.architecture import Candidate

__all__ = ["Job", "Outcome", "run_jobs", "train_and_score", "write_weights"]

_POLL_S = 0.5

Hear = Callable[[int, str], None]
"""Called with the steps that all jobs have done together, and a few words."""


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        name: for a person.
        candidate: network and precision of the engine.
        recipe: how; its seed also decides the first weights, where nothing else does.
        runtime: name of the runtime that builds the engine, or of the one that computes graphs.
        checkpoint: written while training, read if it exists; the caller deletes it.
        teacher: folder or file of a trained network, if the recipe needs one.
        start: safetensors file of the first weights and statistics; from scratch if None.
        keep: where the trained weights are written; nowhere if None.
    """

    name: str
    candidate: Candidate
    recipe: Recipe
    runtime: str
    checkpoint: Path
    teacher: Path | None = None
    start: Path | None = None
    keep: Path | None = None

    @property
    def weights(self) -> Weights:
        """Where the weights come from, as accuracies say it."""
        return "trained" if self.start is None else "fine-tuned"


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        accuracy: of the engine on the validation split, with its interval over images.
        resampled: mAP50-95 on each resample of the images; the draws are the same for every job.
        iterations: steps.
        seconds: wall time since the training began or was last continued, scoring included.
        cpu_s_per_step: CPU time of the training, a teacher's answers included, by its steps.
        peak_bytes: most memory that the training held; None where it cannot be known.
        cpu_s: CPU time of the training since it began or was last continued.
    """

    accuracy: Accuracy
    resampled: tuple[float, ...]
    iterations: int
    seconds: float
    cpu_s_per_step: float
    peak_bytes: int | None
    cpu_s: float


def train_and_score(job: Job, dataset: Dataset, hear: Callable[[Progress], None]) -> Outcome:
    """Train from the first weights, or from the checkpoint, and score the engine.

    Args:
        job: what to train.
        dataset: on what; its validation split scores.
        hear: called after each step; may raise KeyboardInterrupt to stop.

    Raises:
        TrainingError: the loss does not stay finite.
        ExportError: the network has no ONNX form.
        EngineError: see `score_engine`.
        StorageError: the teacher cannot be read.
    """
    elapsed = Elapsed()
    architecture = job.candidate.architecture
    dataset.train.resized(*architecture.input)  # once for all trainings: it is no cost of this one
    training, memory = Elapsed(), PeakMemory()
    teacher = None
    if job.teacher is not None:
        teacher = Teacher.load(job.teacher, dataset.train, len(dataset.classes))
    detector = Detector(architecture, seed=job.recipe.seed)
    if job.start is not None:
        detector.load_state_dict(load_file(job.start))
    result = train_detector(
        detector,
        dataset.train,
        job.recipe,
        teacher=teacher,
        progress=hear,
        checkpoint=job.checkpoint,
        due=Due(),
    )
    cpu_s, peak_bytes = training.cpu_s, memory.bytes
    if job.keep is not None:
        write_weights(detector, job.keep)
    runtime = _runtime(job.runtime)
    graph = trained_graph(detector, job.candidate, dataset.train)
    accuracy, detections = score_engine(
        graph, job.candidate, runtime, dataset.validation, weights=job.weights
    )
    # Equal draws for every training, so that their differences are paired.
    resampled = resampled_map(detections, dataset.validation.annotations, seed=0)
    return Outcome(
        accuracy,
        tuple(resampled.tolist()),
        result.iterations,
        elapsed.wall_s,
        cpu_s / max(result.iterations - result.resumed_from, 1),
        peak_bytes,
        cpu_s,
    )


def _runtime(name: str) -> Runtime:
    """Return what scores; a search for a device that is not here has no plug-in for it."""
    if name == LiteralRuntime.name:
        return LiteralRuntime()
    runtime: Runtime = plugins.load("runtimes", name)()
    return runtime


def write_weights(detector: Detector, path: Path) -> None:
    """Write weights and statistics, whole or not at all, for `Job.start` of another training.

    Raises:
        StorageError: the file cannot be written.
    """
    content = save({name: one.contiguous() for name, one in detector.state_dict().items()})
    write_atomically(path, lambda file: file.write(content))


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
            hear(before + at.iteration, f"{name}: {at.note or f'loss {at.loss:.2f}'}")

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
    except (TrainingError, ExportError, EngineError, InputError) as error:
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
