"""What a search is asked to do, resolved once: names become values, paths become places."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from nas.accuracy.formats import DIGITS
from nas.accuracy.recipe import Recipe
from nas.accuracy.recipe_fields import Value, with_fields
from nas.errors import InputError, UnknownNameError
from nas.searcher.bounds import Bounds
from nas.searcher.connection import sqlite_url
from nas.searcher.estimate import SMALLEST_SUBSET
from nas.searcher.score import Score
from nas.units import Budget

__all__ = [
    "AccuracyMode",
    "Baselines",
    "Confirmation",
    "LatencyMode",
    "Parent",
    "Request",
    "Workspace",
    "training_recipe",
]

AccuracyMode = Literal["supernet", "training"]
"""By weights that all candidates share, or by a training of each on its own."""

LatencyMode = Literal["auto", "measured"]
"""As sure as a decision needs, or measured on the device without exception."""

Baselines = Literal["cheap", "all", "none"]
"""What a winner is compared with: plain rules, these and a random search, or nothing."""

DEFAULT_WORKSPACE = Path("studies")
_EVALUATIONS, _QUICK_EVALUATIONS = 60, 8
_SEEDS, _QUICK_SEEDS = 2, 1
_RULES: Mapping[Baselines, int] = {"cheap": 2, "all": 3, "none": 0}
_LONGEST_NAME = 200  # bytes: file systems take 255, and names are derived from it
_LARGEST = 2  # candidates of the search: with the most MACs, and the slowest
_MOST_JOBS = 4  # each holds the data and a network in memory


@dataclass(frozen=True)
class Workspace:
    """The folder where a user's studies, caches and winners live."""

    root: Path = DEFAULT_WORKSPACE

    @property
    def database_url(self) -> str:
        """The SQLite database that is used unless another URL is given."""
        return sqlite_url(self.root / "nas.db")

    @property
    def cache(self) -> Path:
        """Composed data sets, resized images and trained supernets."""
        return self.root / "cache"

    @property
    def hardware(self) -> Path:
        """The user's own devices, in YAML."""
        return self.root / "hardware"

    @property
    def latency_tables(self) -> Path:
        """What `nas profile` measured, a folder for each device."""
        return self.root / "latency_tables"

    def supernet(self, digest: str) -> Path:
        """Where the supernet with a digest is kept."""
        return self.cache / "supernets" / f"{digest}.safetensors"

    @property
    def statistics(self) -> Path:
        """Batch-norm statistics of candidates, for the weights that they inherit."""
        return self.cache / "statistics"

    def bundle(self, study: str) -> Path:
        """Where the winner of a study is written."""
        return self.root / study


@dataclass(frozen=True)
class Parent:
    """Where a re-targeted study comes from.

    Attributes:
        study: whose candidates it begins with.
        supernet: digest of the weights that both share.
    """

    study: str
    supernet: str


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """How winners are confirmed before they are delivered.

    Attributes:
        candidates: of the front that are fine-tuned, beside the largest and the slowest candidate
            of the search and what the plain rules take.
        seeds: fine-tunings of each network; None takes 2, or 1 if the search is quick or trains
            every candidate on its own.
        baselines: what the winner is compared with.
        against: further networks to compare it with: files, `space:anchor` or anchors.
        jobs: processes that fine-tune side by side; None takes one per core, at most 4, and 1 if
            the search is quick.
    """

    candidates: int = 3
    seeds: int | None = None
    baselines: Baselines = "cheap"
    against: tuple[str, ...] = ()
    jobs: int | None = None

    def __post_init__(self) -> None:
        for what, value in (
            ("candidate", self.candidates),
            ("seed", self.seeds),
            ("job", self.jobs),
        ):
            if value is not None and value < 1:
                raise InputError(f"A confirmation needs at least 1 {what}, got {value}.")
        if self.baselines not in get_args(Baselines):
            raise UnknownNameError.of("set of baselines", self.baselines, get_args(Baselines))

    @property
    def networks(self) -> int:
        """The most networks that are fine-tuned: several may be one."""
        return self.candidates + _LARGEST + _RULES[self.baselines] + len(self.against)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**dataclasses.asdict(self), "against": list(self.against)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Confirmation:
        """Read what `as_dict` returned."""
        return cls(**{**values, "against": tuple(values.get("against", ()))})


@dataclass(frozen=True, kw_only=True)
class Request:
    """A search, as the command line or Python asks for it.

    Attributes:
        hardware: a name that `nas.latency.hardware` knows.
        budget: the hard upper bound on latency.
        data: a path, or None for the embedded digits.
        space: the name of a shipped space, or a path.
        runtime: a name among the plug-ins of kind `runtimes`; None takes the hardware's own.
        precisions: of the candidates; None takes the space's.
        latency: whether predictions and estimates may stand for measurements.
        bounds: hard upper bounds beside the latency.
        table: folder of latency tables; None takes what the workspace has for the hardware.
        prior: folder of latency tables of another environment, to predict from at first.
        sampler: a name that `nas.searcher.sampler` knows.
        evaluations: accuracy evaluations that the study shall have in the end; None takes 60, or 8
            if it is quick.
        accuracy: of candidates, with the weights of a `supernet`, or by a `training` of each on its
            own, of which most end early (`nas.searcher.rungs`).
        subset: validation images that are scored first; 0 scores all at once, None decides by how
            many there are.
        study: its name; None takes a new one.
        storage: any SQLAlchemy URL; None takes the workspace's SQLite file.
        workspace: where everything is written.
        score: what orders the front.
        seed: of every random draw.
        quick: a small recipe and a small embedded data set, for trying out and for tests.
        parent: the study that this one re-targets, if it does.
        trust: check the ranking at the end, by a few networks that are trained on their own.
        recipe_values: field of the recipe -> value, as a recipe file names them.
        confirmation: how the winner is confirmed before it is delivered.
    """

    hardware: str = "cpu"
    budget: Budget
    data: str | None = None
    space: str = "digits"
    runtime: str | None = None
    precisions: tuple[str, ...] | None = None
    latency: LatencyMode = "auto"
    bounds: Bounds = field(default_factory=Bounds)
    table: Path | None = None
    prior: Path | None = None
    sampler: str = "autonac"
    evaluations: int | None = None
    accuracy: AccuracyMode = "supernet"
    subset: int | None = None
    study: str | None = None
    storage: str | None = None
    workspace: Workspace = field(default_factory=Workspace)
    score: Score = field(default_factory=Score)
    seed: int = 0
    quick: bool = False
    parent: Parent | None = None
    trust: bool = True
    recipe_values: Mapping[str, Value] = field(default_factory=dict)
    confirmation: Confirmation = field(default_factory=Confirmation)

    def __post_init__(self) -> None:
        _check_folder_name(self.study)
        if self.evaluations is not None and self.evaluations < 1:
            raise InputError(f"A search needs at least 1 evaluation, got {self.evaluations}.")
        if self.subset is not None and 0 != self.subset < SMALLEST_SUBSET:
            raise InputError(
                f"A subset has at least {SMALLEST_SUBSET} images, or nothing is decided on it; "
                f"got {self.subset}.",
                "Give more, or 0 to score all images at once.",
            )
        if self.latency not in get_args(LatencyMode):
            raise UnknownNameError.of("latency mode", self.latency, get_args(LatencyMode))
        if self.accuracy not in get_args(AccuracyMode):
            raise UnknownNameError.of("accuracy mode", self.accuracy, get_args(AccuracyMode))
        if not 0 <= self.seed < 2**31:
            raise InputError(f"A seed lies in 0..2147483647, got {self.seed}.")

    @property
    def wanted(self) -> int:
        """Accuracy evaluations that the study shall have in the end."""
        return self.evaluations or (_QUICK_EVALUATIONS if self.quick else _EVALUATIONS)

    @property
    def checks_ranking(self) -> bool:
        """Whether the ranking is checked in the end by networks that are trained on their own.

        Without shared weights, all are; a re-targeted study has the check of its parent.
        """
        return self.trust and self.accuracy != "training" and self.parent is None

    @property
    def fine_tunings(self) -> range:
        """The seeds with which each network is fine-tuned."""
        few = self.quick or self.accuracy == "training"  # whole trainings then, not short ones
        usual = _QUICK_SEEDS if few else _SEEDS
        return range(self.seed, self.seed + (self.confirmation.seeds or usual))

    @property
    def workers(self) -> int:
        """Processes that fine-tune side by side; to start one takes longer than a quick one."""
        usual = 1 if self.quick else min(len(os.sched_getaffinity(0)), _MOST_JOBS)
        return self.confirmation.jobs or usual

    @property
    def url(self) -> str:
        """The database."""
        return self.storage or self.workspace.database_url

    def recipe(self) -> Recipe:
        """How the supernet is trained."""
        plain = training_recipe(self.data, self.seed, quick=self.quick)
        return with_fields(plain, self.recipe_values)

    def arguments(self) -> dict[str, Any]:
        """Return what is needed to continue the study later, as JSON values."""
        return {
            "hardware": self.hardware,
            "budget_ms": self.budget.latency_ms,
            "data": self.data,
            "space": self.space,
            "runtime": self.runtime,
            "precisions": list(self.precisions) if self.precisions else None,
            "latency": self.latency,
            "bounds": self.bounds.stated,
            "table": str(self.table) if self.table else None,
            "prior": str(self.prior) if self.prior else None,
            "sampler": self.sampler,
            "evaluations": self.evaluations,
            "accuracy": self.accuracy,
            "subset": self.subset,
            "alpha": self.score.alpha,
            "beta": self.score.beta,
            "seed": self.seed,
            "quick": self.quick,
            "parent": dataclasses.asdict(self.parent) if self.parent else None,
            "trust": self.trust,
            "recipe": dict(self.recipe_values),
            "confirmation": self.confirmation.as_dict(),
        }

    @classmethod
    def restored(
        cls, arguments: Mapping[str, Any], *, study: str, storage: str | None, workspace: Workspace
    ) -> Request:
        """Return the request whose `arguments` were stored; later versions have more of them."""
        values = dict(arguments)
        named = {name: values.pop(name, None) for name in ("precisions", "table", "prior")}
        parent = values.pop("parent", None)
        return cls(
            budget=Budget(values.pop("budget_ms")),
            bounds=Bounds(**values.pop("bounds", {})),
            confirmation=Confirmation.from_dict(values.pop("confirmation", {})),
            score=Score(values.pop("alpha"), values.pop("beta")),
            precisions=tuple(named["precisions"]) if named["precisions"] else None,
            table=Path(named["table"]) if named["table"] else None,
            prior=Path(named["prior"]) if named["prior"] else None,
            parent=Parent(**parent) if parent else None,
            recipe_values=values.pop("recipe", {}),
            study=study,
            storage=storage,
            workspace=workspace,
            **values,
        )


def _check_folder_name(study: str | None) -> None:
    """Refuse a study whose winner could not be written into a folder of its name."""
    if study is None:
        return
    if study in {".", ".."} or not study.isprintable() or "/" in study or "\\" in study:
        raise InputError(
            f"A study's name names a folder of the workspace, too: {study!r} cannot.",
            "Leave out slashes and what cannot be printed.",
        )
    if len(study.encode()) > _LONGEST_NAME:
        raise InputError(
            f"A study's name has at most {_LONGEST_NAME} bytes, got {len(study.encode())}.",
            "Give it a shorter one.",
        )


def training_recipe(data: str | None, seed: int, *, quick: bool) -> Recipe:
    """How networks are trained on a data set; digits must not be mirrored, photographs may."""
    base = Recipe.quick() if quick else Recipe()
    return dataclasses.replace(base, seed=seed, flip=data not in {None, DIGITS})
