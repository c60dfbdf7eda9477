"""An ablation study, from a request to rows in the database.

    subject, changes -> plan -> latencies -> (variant x seed: train, score the engine, store)

Latencies are measured before the first training starts, so that the study never measures its own
load. Every training is stored as soon as it ends, and its checkpoint is kept until then: the same
request again continues a study that was stopped or killed, and trains nothing twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nas.accuracy.dataset import Dataset
from nas.accuracy.formats import load_dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.recipe_fields import Value, with_fields
from nas.errors import InputError, NasError, StudyError
from nas.latency.hardware import Hardware
from nas.latency.latency import Latency
from nas.latency.measurable import runtime_for
from nas.latency.meter import LatencyMeter
from nas.latency.oracle import MeasuringOracle
from nas.searcher.ablation_job import Job, Outcome, run_jobs
from nas.searcher.connection import LockedError, exclusive
from nas.searcher.database import Database
from nas.searcher.engines import doubt_about
from nas.searcher.latency_judge import LatencyJudge
from nas.searcher.progress import Listener
from nas.searcher.request import Workspace, training_recipe
from nas.searcher.setting import installed_versions
from nas.searcher.tables import AblationRow
from nas.searcher.teachers import find_teacher
from nas.searcher.variants import Changes, Plan, Variant, find_subject, plan
from nas.space.architecture import Architecture, digest_of

__all__ = ["COMMAND", "AblationRequest", "ablate", "cost_report"]

COMMAND = "ablate"
"""How runs of ablation studies are marked in the database."""

_SHARED = (
    *("architecture", "precision", "recipe", "recipe_values", "accuracy_id", "resampled"),
    *("latency_ms", "latency_low_ms", "latency_high_ms", "latency_source", "environment"),
    *("iterations", "seconds"),
)
"""The columns that variants share where they are one network and recipe."""


@dataclass(frozen=True, kw_only=True)
class AblationRequest:
    """An ablation study, as the command line or Python asks for it.

    Attributes:
        subject: the baseline: `space:anchor`, an anchor of `space`, or an architecture's YAML file.
        changes: what to change about it.
        space: name or path of the space; None if the subject names it.
        seeds: trainings of each variant, with the seeds 0, 1, ...
        iterations: steps of a training; None takes the recipe's.
        data: a path, or None for the embedded digits.
        study: its name; None derives it from what is studied, so that the same request continues.
        storage: any SQLAlchemy URL; None takes the workspace's SQLite file.
        workspace: where everything is written.
        precision: of the engines, in place of the space's.
        hardware: what latencies hold on.
        runtime: of the engines; None takes the hardware's own.
        quick: a small recipe and few embedded scenes, to try things out.
        jobs: processes that train side by side.
        recipe_values: field of the baseline's recipe -> value; see `nas.accuracy.recipe_fields`.
    """

    subject: str
    changes: Changes = field(default_factory=Changes)
    space: str | None = None
    seeds: int = 3
    iterations: int | None = None
    data: str | None = None
    study: str | None = None
    storage: str | None = None
    workspace: Workspace = field(default_factory=Workspace)
    precision: str | None = None
    hardware: str = "cpu"
    runtime: str | None = None
    quick: bool = False
    jobs: int = 1
    recipe_values: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.seeds, self.jobs) < 1:
            raise InputError(
                "An ablation study needs at least 1 seed and 1 job, "
                f"got {self.seeds} and {self.jobs}."
            )

    @property
    def url(self) -> str:
        """The database."""
        return self.storage or self.workspace.database_url

    def recipe(self) -> Recipe:
        """How the baseline is trained."""
        recipe = with_fields(training_recipe(self.data, 0, quick=self.quick), self.recipe_values)
        if self.iterations is not None:
            recipe = dataclasses.replace(recipe, iterations=self.iterations)
        return recipe

    def arguments(self) -> dict[str, Any]:
        """Return what was asked for, as JSON values."""
        values = {"changes": self.changes.as_dict()}
        for name in ("subject", "space", "seeds", "data", "precision", "hardware", "runtime"):
            values[name] = getattr(self, name)
        values["recipe"] = dict(self.recipe_values)
        return {**values, "iterations": self.iterations, "quick": self.quick}


def ablate(request: AblationRequest, listener: Listener) -> str:
    """Run an ablation study, or continue it, and return its name.

    Args:
        request: what to study.
        listener: hears how it goes.

    Raises:
        InputError: a name is unknown, a value cannot be, or nothing is changed.
        StudyError: the name belongs to a study of something else, or another process runs it.
        NasError: the data cannot be read, a latency cannot be measured, or every training failed;
            what was trained until then is stored.
        KeyboardInterrupt: the user stopped; likewise, and checkpoints are written.
    """
    torch.set_num_threads(1)
    space, point = find_subject(request.subject, request.space)
    hardware = Hardware.named(request.hardware, request.workspace.hardware)
    runtime = runtime_for(hardware, request.runtime)
    with Database(request.url) as database:
        listener.stage("Read the data", 0)
        dataset = load_dataset(request.data, request.workspace.cache, quick=request.quick)
        planned = plan(
            space,
            point,
            request.changes,
            classes=len(dataset.classes),
            recipe=request.recipe(),
            seeds=range(request.seeds),
            precision=request.precision,
        )
        precisions = sorted({one.candidate.precision for one in planned.variants})
        with LatencyMeter(
            hardware, runtime, precisions=precisions, store=database, isolated=True
        ) as meter:
            largest = space.candidate(space.anchors["max"], len(dataset.classes)).architecture
            study = _Study(request, planned, dataset, meter, database, largest)
            with study.opened():
                study.run(listener)
    return study.name


class _Study:
    """One ablation study while this process runs it."""

    def __init__(
        self,
        request: AblationRequest,
        planned: Plan,
        dataset: Dataset,
        meter: LatencyMeter,
        database: Database,
        largest: Architecture,
    ) -> None:
        self._request = request
        self._largest = largest
        self._plan = planned
        self._dataset = dataset
        self._meter = meter
        self._database = database
        self._fingerprint = _fingerprint(planned, dataset, meter)
        self.name = request.study or f"ablation-{digest_of(self._fingerprint)[:8]}"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep other processes out, check that the study is this one, and record the run."""
        try:
            with exclusive(self._database.engine, f"study {self.name}", timeout_s=1):
                self._check()
                with self._recorded():
                    yield
        except LockedError as error:
            raise StudyError(
                f"Only one process may run the study {self.name!r} at a time, and {error.holder} "
                "does.",
                "Wait until it ends, end it, or give this study another name.",
            ) from error

    def run(self, listener: Listener) -> None:
        """Measure every candidate, then train and score what is not stored yet."""
        latencies = self._measure(listener)
        self._share()
        jobs = dict(self._jobs(listener))
        planned = len(list(self._plan.trainings()))
        if len(jobs) < planned:
            listener.say(f"{planned - len(jobs)} of {planned} trainings are stored already.")
        if not jobs:
            return
        listener.stage("Train the variants", sum(job.recipe.iterations for job in jobs))
        failures: list[NasError] = []
        running = run_jobs(list(jobs), self._dataset, self._request.jobs, listener.advance)
        with closing(running):  # so that its processes end with this block, whatever ends it
            for job, outcome in running:
                if isinstance(outcome, NasError):
                    failures.append(outcome)
                    listener.say(f"{job.name} has no result: {outcome}", warning=True)
                    continue
                variant, seed = jobs[job]
                self._store(variant, seed, latencies[variant.candidate.digest], outcome)
                job.checkpoint.unlink(missing_ok=True)
                if doubt := doubt_about(outcome.accuracy, variant.candidate.precision):
                    listener.say(f"{job.name}: {doubt}", warning=True)
                listener.say(f"{job.name}: mAP50-95 {outcome.accuracy.map50_95:.3f}")
        if len(failures) == len(jobs):
            raise failures[0]

    def _measure(self, listener: Listener) -> dict[str, Latency]:
        """Find or measure the latency of every candidate, by its digest."""
        oracle = MeasuringOracle(self._meter, predicts=False)
        judge = LatencyJudge(oracle, self._database, self._plan.space)
        candidates = {one.candidate.digest: one.candidate for one in self._plan.variants}
        listener.stage("Measure the variants", len(candidates))
        latencies = {}
        for done, (digest, candidate) in enumerate(candidates.items(), start=1):
            latencies[digest] = latency = judge(candidate)
            listener.advance(done, f"{latency.ms:.3f} ms, {latency.source}")
        self._meter.close()  # the engines of the reference would only take memory from now on
        return latencies

    def _jobs(self, listener: Listener) -> Iterator[tuple[Job, tuple[Variant, int]]]:
        """Yield what is not stored yet, in order."""
        done = {_key(row) for row in self._database.ablation_rows(self.name)}
        for variant, seed in self._plan.trainings():
            recipe = variant.seeded(seed)
            key = (variant.candidate.architecture.digest, variant.candidate.precision)
            if (*key, recipe.digest) not in done:
                name = f"{variant.name}, seed {seed}"
                runtime = self._meter.runtime.name
                path = self._checkpoint(variant, recipe)
                teacher = self._teacher(variant, listener)
                job = Job(name, variant.candidate, recipe, runtime, path, teacher)
                yield job, (variant, seed)

    def _teacher(self, variant: Variant, listener: Listener) -> Path | None:
        largest = self._largest.at_input(variant.candidate.architecture.input)
        request = self._request
        return find_teacher(variant.recipe, largest, self._dataset, request.workspace, listener)

    def _checkpoint(self, variant: Variant, recipe: Recipe) -> Path:
        digest = digest_of([self.name, variant.digest, recipe.digest, self._dataset.digest])
        folder = self._request.workspace.cache / "ablations"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{digest}.checkpoint"

    def _store(self, variant: Variant, seed: int, latency: Latency, outcome: Outcome) -> None:
        """Store a training under the name of every variant that shares it."""
        recipe, candidate = variant.seeded(seed), variant.candidate
        accuracy_id = self._database.add_accuracy(
            candidate.architecture.digest,
            candidate.precision,
            outcome.accuracy,
            data=self._dataset.digest,
            # A training of another study gave other weights, if only by its versions.
            weights_digest=digest_of([COMMAND, self.name, recipe.digest]),
            seconds=outcome.seconds,
        )
        values = {
            "recipe": recipe.digest,
            "recipe_values": dataclasses.asdict(recipe),
            "accuracy_id": accuracy_id,
            "resampled": list(outcome.resampled),
            "architecture": candidate.architecture.digest,
            "precision": candidate.precision,
            "latency_ms": float(latency.ms),
            "latency_low_ms": float(latency.low_ms),
            "latency_high_ms": float(latency.high_ms),
            "latency_source": latency.source,
            "environment": latency.environment.digest,
            "iterations": outcome.iterations,
            "seconds": outcome.seconds,
        }
        costs = {"cpu_s_per_step": outcome.cpu_s_per_step, "peak_bytes": outcome.peak_bytes}
        key = (candidate.architecture.digest, candidate.precision, recipe.digest)
        self._database.add_report(self.name, cost_report(*key), costs)
        for one in self._plan.same_as(variant):
            self._add(one, seed, values)

    def _share(self) -> None:
        """Give variants that are new to the study the trainings that they share with stored ones.

        It also ends what a process was killed in the middle of storing.
        """
        rows = self._database.ablation_rows(self.name)
        named = {(row.variant, row.seed) for row in rows}
        trained = {_key(row): row for row in rows}
        for variant in self._plan.variants:
            for seed in self._plan.seeds:
                candidate = variant.candidate
                key = (candidate.architecture.digest, candidate.precision)
                row = trained.get((*key, variant.seeded(seed).digest))
                if row is not None and (variant.name, seed) not in named:
                    self._add(variant, seed, {name: getattr(row, name) for name in _SHARED})

    def _add(self, variant: Variant, seed: int, values: Mapping[str, Any]) -> None:
        self._database.add_ablation(
            self.name,
            variant=variant.name,
            seed=seed,
            position=self._plan.variants.index(variant),
            kind=variant.kind,
            changed=variant.changed,
            before=variant.before,
            after=variant.after,
            **values,
        )

    def _check(self) -> None:
        """Refuse a name that stands for something else.

        Raises:
            StudyError: the message says what differs.
        """
        for run in self._database.runs(self.name):
            if run.command != COMMAND:
                raise StudyError(
                    f"The study {self.name!r} is a {run.command}, not an ablation study.",
                    "Give this one another name.",
                )
            _compare(self.name, run.arguments["fingerprint"], self._fingerprint)
        self._check_names()

    def _check_names(self) -> None:
        variants = {one.name: one for one in self._plan.variants}
        for row in self._database.ablation_rows(self.name):
            one = variants.get(row.variant)
            if one is None:
                continue
            ours = (one.candidate.architecture.digest, one.candidate.precision)
            if _key(row) != (*ours, one.seeded(row.seed).digest):
                raise StudyError(
                    f"The variant {row.variant!r} of the study {self.name!r} was another network "
                    "or had another recipe.",
                    "Give this variant another name, or this study.",
                )

    def _recorded(self) -> AbstractContextManager[None]:
        """Keep in the database that a run began, and how it ended."""
        arguments = self._request.arguments() | {
            "fingerprint": self._fingerprint,
            "data_name": self._dataset.name,
            "iterations": self._plan.baseline.recipe.iterations,
            "device": self._meter.environment(self._plan.baseline.candidate.precision).device,
        }
        return self._database.recorded(
            self.name,
            command=COMMAND,
            arguments=arguments,
            space=self._plan.space,
            data=self._dataset.digest,
            recipe=self._plan.baseline.recipe.digest,
            hardware=self._meter.hardware.name,
            runtime=self._meter.runtime.name,
            seed=0,
            versions=installed_versions(),
        )


def cost_report(architecture: str, precision: str, recipe: str) -> str:
    """Name the report of what a training of a study cost, from the digests of what it trained."""
    return f"cost {digest_of([architecture, precision, recipe])}"


def _fingerprint(planned: Plan, dataset: Dataset, meter: LatencyMeter) -> dict[str, str]:
    """What all trainings of a study share; more variants and more seeds may come later."""
    baseline = planned.baseline
    return {
        "baseline": baseline.candidate.digest,
        "space": planned.space,
        "data": dataset.digest,
        "recipe": baseline.recipe.digest,
        # Latencies of two environments have no difference.
        "environment": meter.environment(baseline.candidate.precision).digest,
    }


def _compare(study: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise StudyError(
                f"All trainings of an ablation study must share their {name}: {study!r} has "
                f"{theirs.get(name)!r}, and this one {ours.get(name)!r}.",
                "Give this study another name, or go back to what the study was made for.",
            )


def _key(row: AblationRow) -> tuple[str, str, str]:
    return row.architecture, row.precision, row.recipe
