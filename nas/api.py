"""The Python interface: what the command line does, as functions that return values.

>>> import nas
>>> found = nas.search(budget="0.4ms")        # doctest: +SKIP
>>> found.front[["map50_95", "latency_ms"]]   # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nas.accuracy.formats import load_dataset
from nas.accuracy.recipe_fields import read_recipe, with_fields
from nas.errors import StudyError
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
from nas.results.delivery import Delivered, deliver, train_alone
from nas.results.explanation import Explanation
from nas.results.fronts import FrontDifference, side_of
from nas.results.trust import checked, write_trust
from nas.results.worth import KIND, Worth
from nas.searcher.ablation import AblationRequest
from nas.searcher.ablation import ablate as run_ablation
from nas.searcher.baselines import check_named
from nas.searcher.bounds import Bounds
from nas.searcher.database import Database
from nas.searcher.forecast import Forecast
from nas.searcher.forecast import forecast as run_forecast
from nas.searcher.importance import explain as run_explain
from nas.searcher.importance_sample import Sample
from nas.searcher.loop import search as run_search
from nas.searcher.measuring import (
    Measured,
    MeasureRequest,
    measure_network,
    network_graph,
)
from nas.searcher.profiling import ProfileRequest, profile_space
from nas.searcher.progress import Listener, Silent
from nas.searcher.request import (
    AccuracyMode,
    Confirmation,
    LatencyMode,
    Request,
    Workspace,
    training_recipe,
)
from nas.searcher.result import StudyResult, candidate_of
from nas.searcher.retarget import find_search, retargeted
from nas.searcher.score import Score
from nas.searcher.setting import open_setting
from nas.searcher.teachers import load_teacher
from nas.searcher.trust import Trust
from nas.searcher.trust_job import Effort, check_trust
from nas.searcher.upgrade import Upgrade, upgrade_study
from nas.space.architecture import Architecture
from nas.space.space import Point
from nas.space.subject import find_anchor, is_file, read_architecture
from nas.space.ultralytics import to_ultralytics
from nas.units import COCO_CLASSES, Budget

__all__ = [
    "Found",
    "ablate",
    "anchors",
    "compare",
    "describe",
    "estimate",
    "explain",
    "export",
    "forecast",
    "front",
    "is_stored",
    "layer_list",
    "measure",
    "measure_study",
    "profile",
    "resume",
    "retarget",
    "search",
    "search_request",
    "stored_request",
    "train",
    "trust",
    "worth",
]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        result: the study, with every evaluation.
        delivered: the winner's bundle.
        request: what was searched for; it says the parent of a re-targeted study.
    """

    result: StudyResult
    delivered: Delivered
    request: Request

    @property
    def study(self) -> str:
        """Name under which it is stored; give it to `search` again to continue."""
        return self.result.study

    @property
    def front(self) -> pd.DataFrame:
        """The non-dominated candidates under the budget, best score first."""
        return self.result.front

    @property
    def folder(self) -> Path:
        """Where the winner lies: architecture.yaml, model.onnx, card.md."""
        return self.delivered.folder


def search(
    budget: str | Budget,
    *,
    hardware: str = "cpu",
    data: str | None = None,
    space: str = "digits",
    runtime: str | None = None,
    precision: Sequence[str] | None = None,
    latency: LatencyMode = "auto",
    bounds: Bounds | None = None,
    table: str | Path | None = None,
    prior: str | Path | None = None,
    sampler: str = "autonac",
    evaluations: int | None = None,
    accuracy: AccuracyMode = "supernet",
    subset: int | None = None,
    study: str | None = None,
    storage: str | None = None,
    workspace: str | Path = "studies",
    alpha: float = 1.0,
    beta: float = 0.0,
    seed: int = 0,
    quick: bool = False,
    trust: bool = True,
    recipe: str | Path | None = None,
    confirmation: Confirmation | None = None,
    listener: Listener | None = None,
) -> Found:
    """Search for the most accurate detector within a latency budget, and deliver it.

    Args:
        budget: such as `"0.4ms"`.
        hardware: device that the budget holds on.
        data: COCO JSON or YOLO folder; the embedded digits if None.
        space: name of a shipped search space, or path of a YAML file.
        runtime: runtime of the engines; the hardware's own if None.
        precision: of the candidates, from the fastest to the most exact; the space's if None.
        latency: `auto` predicts where that decides, and estimates for a device that is not
            attached; `measured` does neither.
        bounds: hard upper bounds on parameters, MACs, size or memory.
        table: folder that `profile` wrote for this device; the workspace's own if None.
        prior: folder that `profile` wrote in another environment, to predict from at first.
        sampler: `autonac`, or Optuna's `tpe`, `nsga2`, `gp` or `random`.
        evaluations: accuracy evaluations; 60, or 8 if `quick`, if None.
        accuracy: of candidates: by the shared weights of a `supernet`, or by a `training` of each,
            of which only the best are trained to the end.
        subset: validation images that are scored first, 0 for all at once; a fifth of them, if
            there are 500 or more, if None.
        study: name; an existing one is continued, and nothing stored is repeated. For another
            target there is `retarget`.
        storage: SQLAlchemy URL; SQLite in the workspace if None.
        workspace: folder for studies, caches and winners.
        alpha: weight of mAP in the score.
        beta: weight of the latency in ms in the score (lambda).
        seed: of every random draw.
        quick: a small recipe, to try things out.
        trust: check the ranking at the end, by a few networks that are trained on their own.
        recipe: YAML file of the fields in which the training differs from the usual one.
        confirmation: how many candidates are fine-tuned, how often, and beside what.
        listener: hears how it goes.

    Returns:
        The front and the delivered winner.

    Raises:
        NasError: the input is wrong, nothing meets the budget, or the machine fails.
    """
    request = search_request(
        budget,
        hardware=hardware,
        data=data,
        space=space,
        runtime=runtime,
        precision=precision,
        latency=latency,
        bounds=bounds,
        table=table,
        prior=prior,
        sampler=sampler,
        evaluations=evaluations,
        accuracy=accuracy,
        subset=subset,
        study=study,
        storage=storage,
        workspace=workspace,
        alpha=alpha,
        beta=beta,
        seed=seed,
        quick=quick,
        trust=trust,
        recipe=recipe,
        confirmation=confirmation or Confirmation(),
    )
    return _run(request, listener)


def search_request(
    budget: str | Budget,
    *,
    precision: Sequence[str] | None = None,
    bounds: Bounds | None = None,
    table: str | Path | None = None,
    prior: str | Path | None = None,
    workspace: str | Path = "studies",
    alpha: float = 1.0,
    beta: float = 0.0,
    recipe: str | Path | None = None,
    **same: Any,
) -> Request:
    """Turn the arguments of `search` into a value.

    Raises:
        InputError: a value that cannot be.
    """
    return Request(
        budget=_budget(budget),
        precisions=tuple(precision) if precision else None,
        bounds=bounds or Bounds(),
        table=Path(table) if table else None,
        prior=Path(prior) if prior else None,
        workspace=Workspace(Path(workspace)),
        score=Score(alpha, beta),
        recipe_values=read_recipe(Path(recipe)) if recipe else {},
        **same,
    )


def forecast(request: Request, listener: Listener | None = None) -> Forecast:
    """Say what a search would do and take, from a few steps of each part; nothing is stored.

    Args:
        request: from `search_request` or `stored_request`.
        listener: hears how it goes.

    Raises:
        As `nas.searcher.forecast.forecast`.
    """
    listener = listener or Silent()
    with open_setting(request, listener) as setting:
        return run_forecast(setting, listener)


def resume(
    study: str | None = None,
    *,
    budget: str | Budget | None = None,
    evaluations: int | None = None,
    trust: bool | None = None,
    confirmation: Confirmation | None = None,
    storage: str | None = None,
    workspace: str | Path = "studies",
    listener: Listener | None = None,
) -> Found:
    """Continue a stored search as it was asked for, and deliver its winner.

    Args:
        study: name; the latest if None.
        budget: another bound than then.
        evaluations: another number than then.
        trust: check the ranking, or do not; as then if None.
        confirmation: other candidates, seeds or rivals than then.
        storage: as in `search`.
        workspace: as in `search`.
        listener: hears how it goes.

    Raises:
        StudyError: there is no such study.
        NasError: as in `search`.
    """
    request = stored_request(study, storage, Path(workspace))
    # What a study is about stays; how far it goes and what it must keep may change.
    if budget is not None:
        request = dataclasses.replace(request, budget=_budget(budget))
    if evaluations is not None:
        request = dataclasses.replace(request, evaluations=evaluations)
    if trust is not None:
        request = dataclasses.replace(request, trust=trust)
    if confirmation is not None:
        request = dataclasses.replace(request, confirmation=confirmation)
    return _run(request, listener)


def retarget(
    study: str,
    *,
    budget: str | Budget | None = None,
    hardware: str | None = None,
    runtime: str | None = None,
    precision: Sequence[str] | None = None,
    name: str | None = None,
    storage: str | None = None,
    workspace: str | Path = "studies",
    listener: Listener | None = None,
    **stated: Any,
) -> Found:
    """Search for another target with the supernet and the candidates of a stored study.

    Nothing is trained. What is not given is as in the study; if nothing differs, it is continued.

    Args:
        study: a stored search.
        budget: on the new target.
        hardware: device that the budget holds on.
        runtime: of the engines.
        precision: of the candidates.
        name: of the study that is made; None makes one from the target, such as `study@l4-2ms`.
        storage: as in `search`.
        workspace: as in `search`.
        listener: hears how it goes.
        stated: other arguments of `search`; `data`, `space`, `seed`, `quick` and `recipe` must
            agree with the study. `evaluations` counts what the parent scored; without it, a quarter
            of what a search takes comes on top of that.

    Raises:
        StudyError: another training would be needed, or there is nothing to begin with.
        UnknownNameError: there is no such study, hardware or runtime.
        NasError: as in `search`.
    """
    target = {
        "budget": None if budget is None else _budget(budget),
        "hardware": hardware,
        "runtime": runtime,
        "precisions": tuple(precision) if precision else None,
    }
    stated |= {field: value for field, value in target.items() if value is not None}
    place = Workspace(Path(workspace))
    with Database(storage or place.database_url) as database:
        run = find_search(database, study)
        stored = Request.restored(run.arguments, study=study, storage=storage, workspace=place)
        request = retargeted(database, stored, _fields(stored, stated), name)
    return _run(request, listener)


def compare(
    study: str | None,
    against: str | None = None,
    *,
    storage: str | None = None,
    workspace: str | Path = "studies",
) -> FrontDifference:
    """Compare the front of a study with that of another.

    Args:
        study: name; the latest if None.
        against: the other one; the parent of a re-targeted study if None.
        storage: as in `search`.
        workspace: as in `search`.

    Raises:
        StudyError: there is no such study, or none to compare with.
    """
    request = stored_request(study, storage, Path(workspace))
    if against is None and request.parent is None:
        raise StudyError(
            f"The study {request.study!r} was not re-targeted from another.", "Give --against."
        )
    other = stored_request(
        against or (request.parent.study if request.parent else None), storage, Path(workspace)
    )
    with Database(request.url) as database:
        old, new = _load(database, other), _load(database, request)
        return FrontDifference.of(side_of(old, database), side_of(new, database))


def is_stored(study: str, *, storage: str | None, workspace: Path) -> bool:
    """Say whether a command has run on a study of that name."""
    with Database(storage or Workspace(workspace).database_url) as database:
        return bool(database.runs(study))


def front(request: Request) -> StudyResult:
    """Read a stored study.

    Raises:
        StudyError: there is no such study.
    """
    with Database(request.url) as database:
        return _load(database, request)


def explain(
    study: str | None = None, *, storage: str | None = None, workspace: str | Path = "studies"
) -> Explanation:
    """Estimate which choices of a stored study moved mAP and latency, and how surely.

    Args:
        study: name; the latest if None.
        storage: as in `search`.
        workspace: as in `search`.

    Raises:
        StudyError: there is no such study, or no candidate of it has a latency.
    """
    request = stored_request(study, storage, Path(workspace))
    with Database(request.url) as database:
        sample = Sample.load(database, request)
    return Explanation(run_explain(str(request.study), sample))


def trust(
    request: Request, effort: Effort | None = None, listener: Listener | None = None
) -> Trust:
    """Check whether the ranking of a stored study holds, by networks that are trained on their own.

    Whatever was trained for it before is not trained again. The report is stored with the study;
    `trust.html` and `trust.csv` lie in its folder.

    Args:
        request: from `stored_request`.
        effort: how many networks and seeds, and how long; 12 and 2 by the study's recipe if None.
        listener: hears how it goes.

    Raises:
        As `nas.searcher.trust_job.check_trust`.
    """
    listener = listener or Silent()
    with open_setting(request, listener) as setting:
        result = _load(setting.database, request)
        found = check_trust(setting, result, effort or Effort(), listener)
    write_trust(found, request.workspace.bundle(result.study))
    return found


def worth(request: Request) -> Worth:
    """Read what a stored study was worth beside plain choices; nothing is trained or measured.

    Raises:
        StudyError: its winner was not compared with anything yet.
    """
    with Database(request.url) as database:
        stored = database.find_report(str(request.study), KIND)
    if stored is None:
        raise StudyError(
            f"The winner of the study {request.study!r} was not compared with anything yet.",
            f"Run: nas search --resume --study {request.study}.",
        )
    return Worth.from_dict(stored)


def export(request: Request, listener: Listener, trial: int | None = None) -> Delivered:
    """Deliver the winner of a stored study, or one of its trials.

    Raises:
        StudyError: there is no such study or trial, or nothing keeps the budget.
        BudgetError: nothing keeps the budget when measured again.
    """
    with open_setting(request, listener) as setting:
        result = _load(setting.database, request)
        return deliver(setting, result, listener, trial)


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
    with Database(subject.url) as database:
        row = _load(database, subject).row(trial)
        return to_ultralytics(candidate_of(row, database).architecture)


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


def ablate(request: AblationRequest, listener: Listener | None = None) -> AblationResult:
    """Train a network and copies of it that each differ in one thing, and compare them.

    Raises:
        As `nas.searcher.ablation.ablate`.
    """
    name = run_ablation(request, listener or Silent())
    with Database(request.url) as database:
        return AblationResult.load(database, name)


def anchors(subject: str, space: str | None, names: Sequence[str]) -> dict[str, Point]:
    """Find named points of the space that a subject belongs to, to compare it with.

    Raises:
        SpaceError: no space is named, or its file breaks a rule.
        UnknownNameError: no such space or anchor.
    """
    named = space if is_file(subject) or space else subject.rpartition(":")[0]
    return {name: find_anchor(name, named)[1] for name in names}


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


def measure_study(request: Request, listener: Listener | None = None) -> Upgrade:
    """Measure what a stored study predicted or estimated, and put its numbers right in place.

    Args:
        request: from `stored_request`; its hardware must be attached.
        listener: hears how it goes.

    Raises:
        As `nas.searcher.upgrade.upgrade_study`.
    """
    with Database(request.url) as database:
        return upgrade_study(request, database, listener or Silent())


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
    listener = listener or Silent()
    torch.set_num_threads(1)
    read_architecture(str(subject), 1)  # before any work is spent
    place = Workspace(Path(workspace))
    values = read_recipe(Path(recipe)) if recipe else {}
    if iterations is not None:
        values["iterations"] = iterations
    chosen = with_fields(training_recipe(data, seed, quick=quick), values)
    device = Hardware.named(hardware, place.hardware)
    maker = runtime_for(device, runtime)
    listener.stage("Read the data", 0)
    dataset = load_dataset(data, place.cache, quick=quick)
    architecture = read_architecture(str(subject), len(dataset.classes))
    with LatencyMeter(device, maker, precisions=["fp32"], isolated=True) as meter:
        bench = Bench(dataset, maker, MeasuringOracle(meter, predicts=False))
        folder = place.root / f"trained-{architecture.digest}"
        largest = _largest(str(subject), architecture)
        teacher = load_teacher(chosen, largest, dataset, place, listener)
        return train_alone(architecture, bench, chosen, folder, listener, teacher)


def stored_request(study: str | None, storage: str | None, workspace: Path) -> Request:
    """Return the request that a stored study was made with; the latest study if none is named.

    Raises:
        StudyError: there is no such study.
    """
    place = Workspace(workspace)
    with Database(storage or place.database_url) as database:
        run = database.latest_run(study)
        if run is None:
            raise StudyError(
                f"There is no study {study!r} in {database}."
                if study
                else f"There is no study in {database}.",
                "Start one with: nas search --budget 0.4ms.",
            )
        return Request.restored(
            run.arguments, study=run.study_name, storage=storage, workspace=place
        )


def _load(database: Database, request: Request) -> StudyResult:
    if request.study is None:
        raise StudyError("A study has a name.", "Give it with --study.")
    result = StudyResult.load(database, request.study, request.budget, request.score)
    if result.evaluations.empty:
        raise StudyError(
            f"The study {request.study!r} in {database} has no evaluations.",
            "Look at its name, or search first.",
        )
    return result


def _run(request: Request, listener: Listener | None) -> Found:
    listener = listener or Silent()
    with open_setting(request, listener) as setting:
        check_named(setting)
        result = checked(setting, run_search(setting, listener), listener)
        return Found(result, deliver(setting, result, listener), request)


def _fields(stored: Request, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Turn arguments of `search` into fields of a request."""
    fields = dict(stated)
    score = stored.score
    if fields.keys() & {"alpha", "beta"}:
        fields["score"] = Score(fields.pop("alpha", score.alpha), fields.pop("beta", score.beta))
    if "recipe" in fields:
        path = fields.pop("recipe")
        fields["recipe_values"] = read_recipe(Path(path)) if path else {}
    for name in fields.keys() & {"table", "prior"}:
        fields[name] = Path(fields[name])
    return fields


def _largest(subject: str, architecture: Architecture) -> Architecture | None:
    """Return the largest network of the space that a subject names, at its input size."""
    if is_file(subject):
        return None
    space, _ = find_anchor(subject)
    found = space.candidate(space.anchors["max"], architecture.classes).architecture
    return found.at_input(architecture.input)


def _budget(budget: str | Budget) -> Budget:
    return budget if isinstance(budget, Budget) else Budget.parse(budget)
