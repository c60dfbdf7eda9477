"""The tables `nas_*`, which live beside Optuna's in one database.

They hold what Optuna cannot: caches that outlive a study, every number with its source, and what
becomes known after a trial is told and therefore frozen. Rows belong to a trial by
`(study_name, trial_number)` and never by a foreign key: with a foreign key to its tables, Optuna's
`delete_study` silently does nothing. Times are UTC.

A change here needs a new revision in `nas/searcher/migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "AblationRow",
    "AccuracyRow",
    "ArchitectureRow",
    "EnvironmentRow",
    "EvaluationRow",
    "FrontRow",
    "LatencyRow",
    "ReferenceRow",
    "ReportRow",
    "Row",
    "RunRow",
    "SubsetScoreRow",
    "TrainingRow",
    "UtcDateTime",
]

_DIGEST = String(64)
_NAME = String(64)
_STUDY = String(512)  # Optuna's limit


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept as UTC; SQLite has no time zones, so they are added when it is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002, D102
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"A stored time must have a time zone, got {value.isoformat()}.")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002, D102
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _now() -> datetime:
    return datetime.now(UTC)


class Row(DeclarativeBase):
    """The base of all tables; constraints have fixed names, so that migrations can find them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
    }


class ArchitectureRow(Row):
    """A network that was once looked at; `text` is its canonical description (YAML or JSON)."""

    __tablename__ = "nas_architectures"

    digest: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    space: Mapped[str] = mapped_column(_DIGEST)
    text: Mapped[str]
    parameters: Mapped[int | None] = mapped_column(BigInteger)
    macs: Mapped[int | None] = mapped_column(BigInteger)  # thousands of millions
    created: Mapped[datetime] = mapped_column(default=_now)


class EnvironmentRow(Row):
    """What a latency was measured under: device, driver, runtime, clocks, threads, protocol."""

    __tablename__ = "nas_environments"

    digest: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    description: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=_now)


class ReferenceRow(Row):
    """The reference network's latency under an environment, by which drift is seen."""

    __tablename__ = "nas_references"

    environment: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    ms: Mapped[float]
    low_ms: Mapped[float]
    high_ms: Mapped[float]
    created: Mapped[datetime] = mapped_column(default=_now)


class LatencyRow(Row):
    """A latency with its interval, its source, and all that the clock said about it (`timing`)."""

    __tablename__ = "nas_latencies"
    __table_args__ = (UniqueConstraint("key", "environment"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(512))
    precision: Mapped[str] = mapped_column(_NAME)
    environment: Mapped[str] = mapped_column(_DIGEST)
    ms: Mapped[float]
    low_ms: Mapped[float]
    high_ms: Mapped[float]
    source: Mapped[str] = mapped_column(_NAME)
    timing: Mapped[dict[str, Any] | None]
    runs: Mapped[int | None]
    converged: Mapped[bool | None]
    other_load: Mapped[float | None]
    created: Mapped[datetime] = mapped_column(default=_now)


class AccuracyRow(Row):
    """A mean average precision: of which weights, artifact and split, on which data."""

    __tablename__ = "nas_accuracies"
    __table_args__ = (
        UniqueConstraint(
            "architecture", "precision", "data", "split", "weights", "weights_digest", "artifact"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    architecture: Mapped[str] = mapped_column(ForeignKey("nas_architectures.digest"))
    precision: Mapped[str] = mapped_column(_NAME)
    data: Mapped[str] = mapped_column(_DIGEST)
    split: Mapped[str] = mapped_column(_NAME)
    weights: Mapped[str] = mapped_column(_NAME)
    # Empty rather than NULL, because a unique constraint takes every NULL for a new value.
    weights_digest: Mapped[str] = mapped_column(_DIGEST, default="")
    artifact: Mapped[str] = mapped_column(_NAME)
    map50_95: Mapped[float]
    map50: Mapped[float]
    map_small: Mapped[float | None]
    map_medium: Mapped[float | None]
    map_large: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    images: Mapped[int]
    # All NULL where an engine was compared with nothing; the first alone where nothing was found.
    agreement: Mapped[float | None]
    compared_images: Mapped[int | None]
    compared_with: Mapped[str | None] = mapped_column(_NAME)
    seconds: Mapped[float | None]
    created: Mapped[datetime] = mapped_column(default=_now)


class SubsetScoreRow(Row):
    """mAP50-95 of an engine on the first part of the validation images; it stands on no front.

    The images follow from the data set and their number (`nas.searcher.fidelity`).
    """

    __tablename__ = "nas_subset_scores"
    __table_args__ = (
        UniqueConstraint(
            "architecture", "precision", "data", "weights_digest", "artifact", "images"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    architecture: Mapped[str] = mapped_column(ForeignKey("nas_architectures.digest"))
    precision: Mapped[str] = mapped_column(_NAME)
    data: Mapped[str] = mapped_column(_DIGEST)
    weights_digest: Mapped[str] = mapped_column(_DIGEST)
    artifact: Mapped[str] = mapped_column(_NAME)
    images: Mapped[int]
    map50_95: Mapped[float]
    resampled: Mapped[list[Any]]  # mAP50-95 on each resample of the images; equal draws for all
    seconds: Mapped[float | None]
    created: Mapped[datetime] = mapped_column(default=_now)


class EvaluationRow(Row):
    """What became of a trial.

    The latency is repeated as it was told: the row in `nas_latencies` may later be replaced, as
    when a predicted one is measured.
    """

    __tablename__ = "nas_evaluations"
    __table_args__ = (UniqueConstraint("study_name", "trial_number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_name: Mapped[str] = mapped_column(_STUDY)
    trial_number: Mapped[int]
    architecture: Mapped[str] = mapped_column(ForeignKey("nas_architectures.digest"))
    precision: Mapped[str] = mapped_column(_NAME)
    state: Mapped[str] = mapped_column(_NAME)
    latency_ms: Mapped[float | None]
    latency_low_ms: Mapped[float | None]
    latency_high_ms: Mapped[float | None]
    latency_source: Mapped[str | None] = mapped_column(_NAME)
    environment: Mapped[str | None] = mapped_column(_DIGEST)
    latency_id: Mapped[int | None] = mapped_column(
        ForeignKey("nas_latencies.id", ondelete="SET NULL")
    )
    accuracy_id: Mapped[int | None] = mapped_column(
        ForeignKey("nas_accuracies.id", ondelete="SET NULL")
    )
    # What the accuracy is, or what was told in its place: `whole`, `subset` or `rung`.
    fidelity: Mapped[str | None] = mapped_column(_NAME)
    estimate: Mapped[float | None]
    estimate_low: Mapped[float | None]
    estimate_high: Mapped[float | None]
    estimate_images: Mapped[int | None]
    estimate_iterations: Mapped[int | None]
    score: Mapped[float | None]
    score_lambda: Mapped[float | None]
    score_alpha: Mapped[float | None]
    score_beta: Mapped[float | None]
    error: Mapped[str | None]
    created: Mapped[datetime] = mapped_column(default=_now)


class AblationRow(Row):
    """One training of an ablation study: what was changed, with which seed, and what came of it.

    Variants that describe one network and recipe share a training, and have a row each. The latency
    is repeated as it was told, as in `EvaluationRow`.
    """

    __tablename__ = "nas_ablations"
    __table_args__ = (UniqueConstraint("study_name", "variant", "seed"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_name: Mapped[str] = mapped_column(_STUDY)
    variant: Mapped[str] = mapped_column(_STUDY)
    seed: Mapped[int] = mapped_column(BigInteger)
    position: Mapped[int]  # of the variant in its study
    kind: Mapped[str] = mapped_column(_NAME)
    changed: Mapped[str]
    before: Mapped[str]
    after: Mapped[str]
    architecture: Mapped[str] = mapped_column(ForeignKey("nas_architectures.digest"))
    precision: Mapped[str] = mapped_column(_NAME)
    recipe: Mapped[str] = mapped_column(_DIGEST)
    recipe_values: Mapped[dict[str, Any]]
    accuracy_id: Mapped[int | None] = mapped_column(
        ForeignKey("nas_accuracies.id", ondelete="SET NULL")
    )
    resampled: Mapped[list[Any]]  # mAP50-95 on each resample of the images; equal draws for all
    latency_ms: Mapped[float]
    latency_low_ms: Mapped[float]
    latency_high_ms: Mapped[float]
    latency_source: Mapped[str] = mapped_column(_NAME)
    environment: Mapped[str] = mapped_column(_DIGEST)
    iterations: Mapped[int]
    seconds: Mapped[float]
    created: Mapped[datetime] = mapped_column(default=_now)


class TrainingRow(Row):
    """A network that was trained for itself, to see what a search score is worth: on one split.

    `purpose` is what it was trained for, such as a landmark of `nas trust` or a confirmation;
    `start` is where its weights came from. The recipe's digest does not hold its seed.
    """

    __tablename__ = "nas_trainings"
    __table_args__ = (
        UniqueConstraint(
            *("study_name", "purpose", "architecture", "precision"),
            *("start", "recipe", "seed", "split"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_name: Mapped[str] = mapped_column(_STUDY)
    purpose: Mapped[str] = mapped_column(_NAME)
    name: Mapped[str]  # for a person, such as "trial 12" or "most MACs that fits"
    architecture: Mapped[str] = mapped_column(ForeignKey("nas_architectures.digest"))
    precision: Mapped[str] = mapped_column(_NAME)
    start: Mapped[str] = mapped_column(_NAME)
    recipe: Mapped[str] = mapped_column(_DIGEST)
    seed: Mapped[int] = mapped_column(BigInteger)
    split: Mapped[str] = mapped_column(_NAME)
    map50_95: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    map50: Mapped[float | None]
    artifact: Mapped[str] = mapped_column(_NAME)
    resampled: Mapped[list[Any]]  # mAP50-95 on each resample of the images; equal draws for all
    iterations: Mapped[int]
    seconds: Mapped[float]
    created: Mapped[datetime] = mapped_column(default=_now)


class ReportRow(Row):
    """What a study was found to be worth, as JSON: the latest of a kind counts."""

    __tablename__ = "nas_reports"
    __table_args__ = (Index(None, "study_name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_name: Mapped[str] = mapped_column(_STUDY)
    kind: Mapped[str] = mapped_column(_NAME)
    content: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=_now)


class FrontRow(Row):
    """The front of a study as it was after a trial; a member is a dictionary of plain values."""

    __tablename__ = "nas_fronts"
    __table_args__ = (Index(None, "study_name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_name: Mapped[str] = mapped_column(_STUDY)
    trial_number: Mapped[int]
    members: Mapped[list[Any]]
    hypervolume: Mapped[float]
    reference_point: Mapped[list[Any]]
    created: Mapped[datetime] = mapped_column(default=_now)


class RunRow(Row):
    """One execution of a command on a study: what was asked for, with what, and how it ended."""

    __tablename__ = "nas_runs"
    __table_args__ = (Index(None, "study_name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_name: Mapped[str] = mapped_column(_STUDY)
    command: Mapped[str]
    arguments: Mapped[dict[str, Any]]
    space: Mapped[str] = mapped_column(_DIGEST)
    data: Mapped[str] = mapped_column(_DIGEST)
    recipe: Mapped[str] = mapped_column(_DIGEST)
    hardware: Mapped[str] = mapped_column(_NAME)
    runtime: Mapped[str] = mapped_column(_NAME)
    budget_ms: Mapped[float | None]
    seed: Mapped[int] = mapped_column(BigInteger)
    versions: Mapped[dict[str, Any]]
    commit: Mapped[str | None] = mapped_column(_DIGEST)
    started: Mapped[datetime] = mapped_column(default=_now)
    ended: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(_NAME, default="running")
    message: Mapped[str] = mapped_column(default="")
