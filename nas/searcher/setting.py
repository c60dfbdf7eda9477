"""What a search works with, opened and checked before anything is spent."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import optuna
import torch

from nas.accuracy.dataset import Dataset
from nas.accuracy.formats import load_dataset
from nas.latency.hardware import Hardware
from nas.latency.oracle import LatencyOracle
from nas.latency.runtimes.base import Runtime
from nas.searcher.database import Database
from nas.searcher.latency_judge import LatencyJudge
from nas.searcher.oracles import Answers, open_answers
from nas.searcher.progress import Listener
from nas.searcher.request import Request
from nas.searcher.sampler import make_sampler
from nas.space.architecture import Candidate
from nas.space.space import Point, SearchSpace, load_space

__all__ = ["Setting", "installed_versions", "open_setting"]


_PACKAGES = ("nas-detector", "torch", "optuna", "onnx", "openvino", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Setting:
    """Everything that a search works with, opened and checked."""

    request: Request
    answers: Answers
    dataset: Dataset
    hardware: Hardware
    database: Database
    latency: LatencyJudge

    @property
    def space(self) -> SearchSpace:
        """What is searched: the part of the space that can be answered for."""
        return self.answers.space

    @property
    def oracle(self) -> LatencyOracle:
        """Answers what candidates cost."""
        return self.answers.oracle

    @property
    def runtime(self) -> Runtime:
        """Builds the engines that are scored."""
        return self.answers.runtime

    @property
    def classes(self) -> int:
        """Number of classes of the data set."""
        return len(self.dataset.classes)

    def candidate(self, point: Point) -> Candidate:
        """Build what a point describes, for this data set."""
        return self.space.candidate(point, self.classes)

    def run_values(self) -> dict[str, object]:
        """Return what the database keeps about a run of this setting."""
        return {
            "command": "search",
            "arguments": self.request.arguments(),
            "space": self.space.digest,
            "data": self.dataset.digest,
            "recipe": self.request.recipe().digest,
            "hardware": self.hardware.name,
            "runtime": self.answers.target,
            "budget_ms": self.request.budget.latency_ms,
            "seed": self.request.seed,
            "versions": installed_versions(),
            "commit": None,
        }


@contextmanager
def open_setting(request: Request, listener: Listener) -> Iterator[Setting]:
    """Open everything that a request names.

    Raises:
        NasError: a name is unknown, or something cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)  # two threads spin against each other when anything else runs
    make_sampler(request.sampler, request.seed, 0)  # an unknown name costs nothing yet
    whole = load_space(request.space)
    hardware = Hardware.named(request.hardware, request.workspace.hardware)
    with Database(request.url) as database:
        answers = open_answers(request, hardware, whole, database, listener)
        listener.stage("Read the data", 0)
        dataset = load_dataset(request.data, request.workspace.cache, quick=request.quick)
        if text := str(dataset.report):
            listener.say(text)
        with answers.oracle as oracle:
            latency = LatencyJudge(oracle, database, answers.space.digest)
            yield Setting(request, answers, dataset, hardware, database, latency)


def installed_versions() -> dict[str, str]:
    """Return the versions that a result depends on: Python's, and those of the main packages."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
