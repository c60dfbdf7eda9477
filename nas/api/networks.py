"""What can be asked of one network, or of one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nas.accuracy.formats import load_dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.recipe_fields import read_recipe, with_fields
from nas.api.studies import _load
from nas.latency.estimator import PRECISION, Estimate, Estimator
from nas.latency.hardware import Hardware
from nas.latency.measurable import runtime_for
from nas.latency.meter import LatencyMeter
from nas.latency.oracle import MeasuringOracle
from nas.latency.roofline import DevicePeaks
from nas.latency.table import LatencyTable
from nas.latency.timing import ProtocolName
from nas.latency.workload import Workload
from nas.model.description import Description
from nas.model.description import describe as describe_architecture
from nas.results.ablation import AblationResult
from nas.results.bench import Bench
from nas.results.delivery import Delivered, train_alone
from nas.searcher.ablation import AblationRequest
from nas.searcher.ablation import ablate as run_ablation
from nas.searcher.database import Database
from nas.searcher.forecast import Forecast
from nas.searcher.forecast import forecast_training as run_forecast
from nas.searcher.measuring import (
    Measured,
    MeasureRequest,
    measure_network,
    network_graph,
)
from nas.searcher.profiling import ProfileRequest, profile_space
from nas.searcher.progress import Listener, Silent
from nas.searcher.request import (
    Request,
    Workspace,
    training_recipe,
)
from nas.searcher.result import candidate_of
from nas.searcher.teachers import load_teacher
from nas.space.architecture import Architecture, Candidate
from nas.space.space import Point
from nas.space.subject import find_anchor, is_file, read_architecture
from nas.space.ultralytics import to_ultralytics
from nas.units import COCO_CLASSES

__all__ = [
    "ablate",
    "anchors",
    "describe",
    "estimate",
    "forecast_training",
    "layer_list",
    "measure",
    "profile",
    "train",
]


def describe(subject: str | Path, *, classes: int = COCO_CLASSES) -> Description:
    """List the layers of a network with their output shapes, parameters and MACs.

    Args:
        subject: `space:anchor`, an `architecture.yaml`, or a layer list of YOLO users.
        classes: of an anchor; a file says its own.

    Raises:
        ArchitectureError: the file describes no network.
        SpaceError: the space cannot be read.
        UnknownNameError: no such space or anchor.
    """
    return describe_architecture(read_architecture(str(subject), classes))


def layer_list(
    subject: Request | str | Path, *, trial: int | None = None, classes: int = COCO_CLASSES
) -> str:
    """Write a network as the layer list that YOLO users know; nothing is trained or measured.

    Args:
        subject: the request of a stored study, or what `describe` takes.
        trial: of the study; its winner if None.
        classes: of an anchor; a file says its own.

    Raises:
        StudyError: there is no such study or trial, or nothing keeps the budget.
        NasError: the network cannot be read.
    """
    if not isinstance(subject, Request):
        return to_ultralytics(read_architecture(str(subject), classes))
    with Database(subject.url, make=False) as database:
        row = _load(database, subject).row(trial)
        return to_ultralytics(candidate_of(row, database).architecture)


def anchors(subject: str, space: str | None, names: Sequence[str]) -> dict[str, Point]:
    """Find named points of the space that a subject belongs to, to compare it with.

    Raises:
        SpaceError: no space is named, or its file breaks a rule.
        UnknownNameError: no such space or anchor.
    """
    named = space if is_file(subject) or space else subject.rpartition(":")[0]
    return {name: find_anchor(name, named)[1] for name in names}


def ablate(request: AblationRequest, listener: Listener | None = None) -> AblationResult:
    """Train a network and copies of it that each differ in one thing, and compare them.

    Raises:
        As `nas.searcher.ablation.ablate`.
    """
    name = run_ablation(request, listener or Silent())
    with Database(request.url) as database:
        return AblationResult.load(database, name)


def train(
    subject: str | Path,
    *,
    data: str | None = None,
    iterations: int | None = None,
    hardware: str = "cpu",
    runtime: str | None = None,
    seed: int = 0,
    quick: bool = False,
    recipe: str | Path | None = None,
    workspace: str | Path = "studies",
    listener: Listener | None = None,
) -> Delivered:
    """Train a network from scratch, measure and score it, and write its bundle.

    Args:
        subject: `space:anchor`, an `architecture.yaml`, or a layer list of YOLO users.
        data: COCO JSON or YOLO folder; the embedded digits if None.
        iterations: training steps; those of the recipe if None.
        hardware: device to measure on.
        runtime: of the engine; the hardware's own if None.
        seed: of weights, data order and augmentation.
        quick: a small recipe.
        recipe: as in `search`; `iterations` counts more.
        workspace: folder for caches and bundles.
        listener: hears how it goes.

    Raises:
        ArchitectureError: the file describes no network.
        NasError: the data cannot be read, or the machine fails.
    """
    asked = _Training(
        subject=str(subject),
        data=data,
        iterations=iterations,
        hardware=hardware,
        runtime=runtime,
        seed=seed,
        quick=quick,
        recipe=recipe,
        workspace=workspace,
    )
    listener = listener or Silent()
    with asked.opened(listener) as (architecture, bench):
        chosen, place = asked.chosen, asked.place
        largest = _largest(asked.subject, architecture)
        teacher = load_teacher(chosen, largest, bench.dataset, place, listener)
        folder = place.root / f"trained-{architecture.digest}"
        return train_alone(architecture, bench, chosen, folder, listener, teacher)


def forecast_training(
    subject: str | Path, *, listener: Listener | None = None, **options: Any
) -> Forecast:
    """Say what `train` would do and take, from a few steps of each part.

    Args:
        subject: as in `train`.
        listener: hears how it goes.
        options: other arguments of `train`.

    Raises:
        As `nas.searcher.forecast.forecast_training`, and as `train`.
    """
    asked = _Training(subject=str(subject), **options)
    listener = listener or Silent()
    with asked.opened(listener) as (architecture, bench):
        folder = asked.place.root
        folder.mkdir(parents=True, exist_ok=True)
        candidate = Candidate(architecture=architecture)
        return run_forecast(
            candidate, bench.dataset, asked.chosen, bench.runtime, bench.oracle, folder, listener
        )


def measure(
    subject: str | Path,
    *,
    hardware: str = "cpu",
    runtime: str | None = None,
    precision: str = "fp32",
    protocol: ProtocolName = "hot",
    batch: int | None = None,
    image: str | Path | None = None,
    threads: int = 1,
    workspace: str | Path = "studies",
) -> Measured:
    """Measure a network on an attached device.

    Args:
        subject: any ONNX file with one image input, `space:anchor`, an `architecture.yaml`, or a
            layer list of YOLO users; without weights, the network has random ones.
        hardware: device to measure on.
        runtime: of the engine; the hardware's own if None.
        precision: of the engine.
        protocol: `hot`, or `buffered`: with a pause before every run, as in a deployed program.
        batch: images per run; an ONNX file has its own.
        image: time this image on its way to detections, and not the network alone.
        threads: of the engine; with more than one, the wall clock times it.
        workspace: folder with devices of your own.

    Raises:
        As `nas.searcher.measuring.measure_network`.
    """
    return measure_network(
        MeasureRequest(
            subject=str(subject),
            hardware=hardware,
            runtime=runtime,
            precision=precision,
            protocol=protocol,
            batch=batch,
            image=Path(image) if image else None,
            threads=threads,
            workspace=Workspace(Path(workspace)),
        )
    )


def profile(request: ProfileRequest, listener: Listener | None = None) -> list[LatencyTable]:
    """Measure networks that cover a space on an attached device, and write latency tables.

    Raises:
        As `nas.searcher.profiling.profile_space`.
    """
    with Database(request.url) as database:
        return profile_space(request, database, listener or Silent())


def estimate(subject: str | Path, *, hardware: str, workspace: str | Path = "studies") -> Estimate:
    """Estimate the latency of a network on a device that need not be here, from its data sheet.

    TensorRT, fp16, batch 1, the engine alone. The error is what the estimator got wrong on devices
    that it was not fitted to: 80 % intervals of about a third down and a half up.

    Args:
        subject: as in `measure`.
        hardware: an NVIDIA GPU or Jetson of the registry, or a YAML file.
        workspace: folder with devices of your own.

    Raises:
        NasError: no such device or network, or its data sheet lacks a figure.
    """
    device = Hardware.named(hardware, Workspace(Path(workspace)).hardware)
    peaks = DevicePeaks.of(device)
    workload = Workload.from_onnx(network_graph(str(subject)))
    return Estimator.load().estimate(workload, peaks, PRECISION)


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What `train` was asked for."""

    subject: str
    data: str | None = None
    iterations: int | None = None
    hardware: str = "cpu"
    runtime: str | None = None
    seed: int = 0
    quick: bool = False
    recipe: str | Path | None = None
    workspace: str | Path = "studies"

    @property
    def place(self) -> Workspace:
        return Workspace(Path(self.workspace))

    @cached_property
    def chosen(self) -> Recipe:
        values = read_recipe(Path(self.recipe)) if self.recipe else {}
        if self.iterations is not None:
            values["iterations"] = self.iterations
        return with_fields(training_recipe(self.data, self.seed, quick=self.quick), values)

    @contextmanager
    def opened(self, listener: Listener) -> Iterator[tuple[Architecture, Bench]]:
        """Open the network, for the classes of the data, and the bench that it is examined on."""
        torch.set_num_threads(1)
        _ = read_architecture(self.subject, 1), self.chosen  # before any work is spent
        device = Hardware.named(self.hardware, self.place.hardware)
        maker = runtime_for(device, self.runtime)
        listener.stage("Read the data", 0)
        dataset = load_dataset(self.data, self.place.cache, quick=self.quick)
        architecture = read_architecture(self.subject, len(dataset.classes))
        with LatencyMeter(device, maker, precisions=["fp32"], isolated=True) as meter:
            yield architecture, Bench(dataset, maker, MeasuringOracle(meter, predicts=False))


def _largest(subject: str, architecture: Architecture) -> Architecture | None:
    """Return the largest network of the space that a subject names, at its input size."""
    if is_file(subject):
        return None
    space, _ = find_anchor(subject)
    found = space.candidate(space.anchors["max"], architecture.classes).architecture
    return found.at_input(architecture.input)
