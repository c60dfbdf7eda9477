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
from nas.latency.measurable import runtime_for
from nas.latency.meter import LatencyMeter
from nas.latency.runtimes.base import Runtime
from nas.searcher.database import Database
from nas.searcher.latency_judge import LatencyJudge
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
    space: SearchSpace
    dataset: Dataset
    hardware: Hardware
    runtime: Runtime
    database: Database
    latency: LatencyJudge
    meter: LatencyMeter

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
            "runtime": self.runtime.name,
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
    runtime = runtime_for(hardware, request.runtime)
    space = whole.within(runtime.precisions)
    if left_out := [one for one in whole.precisions if one not in space.precisions]:
        listener.say(
            f"Candidates in {', '.join(left_out)} are left out of the space: {runtime.name} has "
            f"{', '.join(runtime.precisions)}.",
            warning=True,
        )
    with Database(request.url) as database:
        listener.stage("Read the data", 0)
        dataset = load_dataset(request.data, request.workspace.cache, quick=request.quick)
        if text := str(dataset.report):
            listener.say(text)
        with LatencyMeter(
            hardware, runtime, precisions=space.precisions, store=database, isolated=True
        ) as meter:
            latency = LatencyJudge(meter, database, space.digest)
            yield Setting(request, space, dataset, hardware, runtime, database, latency, meter)


def installed_versions() -> dict[str, str]:
    """Return the versions that a result depends on: Python's, and those of the main packages."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
