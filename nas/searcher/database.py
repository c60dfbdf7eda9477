"""Our own tables, in the same database as Optuna's study.

`Database` is what the rest of the project sees of SQL: it stores what was measured, so that nothing
is measured twice, and gives the final table of a study. Every method is one short transaction that
begins with its write: SQLite then waits for its turn instead of failing half-way. Storing the same
thing twice is harmless.

The schema is made and upgraded by Alembic when a database is opened, under a lock, because neither
SQLite nor PostgreSQL lets two processes create the same tables at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, cast, get_args

import pandas as pd
from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from nas.accuracy.evaluate import Accuracy, Agreement
from nas.errors import NasError, StorageError
from nas.latency.clock import Timing
from nas.latency.hardware import Environment
from nas.latency.latency import Latency, Source
from nas.searcher.connection import (
    BUSY_TIMEOUT_S,
    create_engine,
    masked,
    parse_url,
    sqlite_path,
    translated,
)
from nas.searcher.estimate import Estimate
from nas.searcher.migrations import upgrade
from nas.searcher.tables import (
    ABLATION_COLUMNS,
    EVALUATION_COLUMNS,
    AblationRow,
    AccuracyRow,
    ArchitectureRow,
    EnvironmentRow,
    EvaluationRow,
    FrontRow,
    LatencyRow,
    ReferenceRow,
    ReportRow,
    Row,
    RunRow,
    SubsetScoreRow,
    TrainingRow,
)

__all__ = ["Database", "State"]

State = Literal["complete", "stopped", "infeasible", "failed", "duplicate"]
"""What can become of a trial; a stopped one was scored in part, and left at that."""

_RUN_STATES = ("running", "finished", "interrupted", "failed")
_AnyRow = TypeVar("_AnyRow", bound=Row)


class Database:
    """A database that is open, has the newest schema, and can be written to.

    Args:
        url: `sqlite:///studies/nas.db` (the folder is made) or `postgresql://user@host/name`.
        busy_timeout_s: how long a write waits for another process on SQLite.

    Raises:
        StorageError: no such dialect, no server, no permission, not a database, or a schema that a
            newer version of this project wrote.
        MissingPackageError: the driver is not installed.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.url = parse_url(url)
        self.busy_timeout_s = busy_timeout_s
        self._make_folder()
        self.engine = create_engine(self.url, busy_timeout_s)
        with ExitStack() as stack, translated(self.url):
            stack.callback(self.close)  # unless all goes well
            upgrade(self.engine)
            stack.pop_all()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return masked(self.url)

    def close(self) -> None:
        """Close the connections; the next use would open new ones."""
        self.engine.dispose()

    # Architectures and environments

    def add_architecture(
        self,
        digest: str,
        *,
        space: str,
        text: str,
        parameters: int | None = None,
        macs: int | None = None,
    ) -> None:
        """Store a network's canonical description; known counts replace unknown ones."""
        row = {"digest": digest, "space": space, "text": text}
        counts = {"parameters": parameters, "macs": macs}
        known = {name: int(count) for name, count in counts.items() if count is not None}
        self._upsert(ArchitectureRow, row | known, keys=["digest"], replace=known)

    def find_architecture(self, digest: str) -> ArchitectureRow | None:
        """Find a network by its digest."""
        return self._first(ArchitectureRow, digest=digest)

    def add_environment(self, digest: str, description: Mapping[str, Any]) -> None:
        """Store what a latency is measured under."""
        row = {"digest": digest, "description": dict(description)}
        self._upsert(EnvironmentRow, row, keys=["digest"])

    def find_environment(self, digest: str) -> EnvironmentRow | None:
        """Find an environment by its digest."""
        return self._first(EnvironmentRow, digest=digest)

    def add_reference(
        self, environment_digest: str, ms: float, low_ms: float, high_ms: float
    ) -> None:
        """Store the reference network's latency; the first calibration of an environment stays.

        Latencies are multiples of it: a second one would change the unit of those already stored.
        """
        row = {
            "environment": environment_digest,
            "ms": float(ms),
            "low_ms": float(low_ms),
            "high_ms": float(high_ms),
        }
        self._upsert(ReferenceRow, row, keys=["environment"])

    def find_reference(self, environment_digest: str) -> float | None:
        """Find the reference network's latency in ms under an environment."""
        row = self._first(ReferenceRow, environment=environment_digest)
        return row.ms if row else None

    # Latencies and accuracies: caches that outlive a study

    def add_latency(self, key: str, latency: Latency, timing: Timing | None) -> None:
        """Store a latency and its environment, in place of an earlier one with that key."""
        self.add_environment(latency.environment.digest, latency.environment.as_dict())
        row = {
            "key": key,
            "precision": latency.environment.precision,
            "environment": latency.environment.digest,
            "ms": float(latency.ms),
            "low_ms": float(latency.low_ms),
            "high_ms": float(latency.high_ms),
            "source": latency.source,
            "timing": dataclasses.asdict(timing) if timing else None,
            "runs": timing.runs if timing else None,
            "converged": timing.converged if timing else None,
            "other_load": timing.other_load if timing else None,
            "created": datetime.now(UTC),
        }
        self._upsert(LatencyRow, row, keys=["key", "environment"], replace=row)

    def find_latency(self, key: str) -> Latency | None:
        """Find the latest latency that was stored under a key."""
        query = (
            select(LatencyRow, EnvironmentRow)
            .join(EnvironmentRow, LatencyRow.environment == EnvironmentRow.digest)
            .where(LatencyRow.key == key)
            .order_by(LatencyRow.created.desc())
        )
        with self._session() as session:
            found = session.execute(query.limit(1)).first()
        if found is None:
            return None
        row, environment = found
        return Latency(
            ms=row.ms,
            low_ms=row.low_ms,
            high_ms=row.high_ms,
            source=cast("Source", row.source),
            environment=Environment.from_dict(environment.description),
        )

    def add_accuracy(
        self,
        architecture: str,
        precision: str,
        accuracy: Accuracy,
        *,
        data: str,
        weights_digest: str = "",
        seconds: float | None = None,
    ) -> int:
        """Store an accuracy, in place of an earlier one of the same artifact, and return its row.

        Args:
            architecture: digest of a stored architecture.
            precision: what the artifact computes in.
            accuracy: what was scored.
            data: digest of the data set.
            weights_digest: which weights, such as the digest of the supernet that they come from.
            seconds: what it cost.
        """
        row = dataclasses.asdict(accuracy) | {
            **_agreement_columns(accuracy.agreement),
            "architecture": architecture,
            "precision": precision,
            "data": data,
            "weights_digest": weights_digest,
            "seconds": seconds,
            "created": datetime.now(UTC),
        }
        keys = ["architecture", "precision", "data", "split", "weights", "weights_digest"]
        return self._upsert(AccuracyRow, row, keys=[*keys, "artifact"], replace=row)

    def find_accuracy(
        self,
        architecture: str,
        precision: str,
        *,
        data: str,
        split: str,
        weights: str,
        artifact: str,
        weights_digest: str = "",
    ) -> tuple[int, Accuracy] | None:
        """Find a stored accuracy and the number of its row."""
        row = self._first(
            AccuracyRow,
            architecture=architecture,
            precision=precision,
            data=data,
            split=split,
            weights=weights,
            artifact=artifact,
            weights_digest=weights_digest,
        )
        if row is None:
            return None
        values = {one.name: getattr(row, one.name) for one in dataclasses.fields(Accuracy)}
        return row.id, Accuracy(**values | {"agreement": _agreement_of(row)})

    def add_subset_score(self, **values: Any) -> None:
        """Store a score on part of the validation images, in place of an earlier one.

        Args:
            values: columns of `nas.searcher.tables.SubsetScoreRow`.
        """
        keys = ["architecture", "precision", "data", "weights_digest", "artifact", "images"]
        self._upsert(SubsetScoreRow, values, keys=keys, replace=values)

    def find_subset_score(self, **values: Any) -> SubsetScoreRow | None:
        """Find a score on part of the validation images by the columns that it is unique in."""
        return self._first(SubsetScoreRow, **values)

    # A study: its evaluations, fronts and runs

    def add_evaluation(  # noqa: PLR0913
        self,
        study: str,
        trial: int,
        *,
        architecture: str,
        precision: str,
        state: State,
        latency: Latency | None = None,
        accuracy_id: int | None = None,
        score: float | None = None,
        weights: tuple[float | None, float | None, float | None] = (None, None, None),
        estimate: Estimate | None = None,
        error: str | None = None,
    ) -> None:
        """Store what became of a trial; a second call for the trial replaces the first.

        Args:
            study: name of the study.
            trial: number of the trial.
            architecture: digest of a stored architecture.
            precision: what the artifact computes in.
            state: what became of it.
            latency: what the trial was told, or nothing if it never got so far.
            accuracy_id: what `add_accuracy` or `find_accuracy` returned.
            score: the view of the front that was asked for.
            weights: the score's lambda, alpha and beta.
            estimate: what stands in the place of an accuracy.
            error: why it failed.

        Raises:
            StorageError: there is no such state, or the architecture is not stored.
        """
        _check_name("state of a trial", state, get_args(State))
        row: dict[str, Any] = {
            "study_name": study,
            "trial_number": trial,
            "architecture": architecture,
            "precision": precision,
            "state": state,
            "accuracy_id": accuracy_id,
            "score": score,
            "fidelity": "whole" if accuracy_id is not None else None,
            "error": error,
            **dict(zip(("score_lambda", "score_alpha", "score_beta"), weights, strict=True)),
        }
        if latency is not None:
            row |= _latency_columns(architecture, latency)
        if estimate is not None:
            row |= _estimate_columns(estimate)
        self._upsert(EvaluationRow, row, keys=["study_name", "trial_number"], replace=row)

    def replace_latency(
        self, study: str, trial: int, *, architecture: str, latency: Latency
    ) -> None:
        """Replace the latency of a stored trial, and keep everything else about it."""
        this = (EvaluationRow.study_name == study) & (EvaluationRow.trial_number == trial)
        values = _latency_columns(architecture, latency)
        with self._session() as session:
            session.execute(update(EvaluationRow).where(this).values(values))

    def remove_evaluation(self, study: str, trial: int) -> None:
        """Remove what `add_evaluation` stored of a trial, if anything; measurements stay."""
        with self._session() as session:
            session.execute(delete(EvaluationRow).filter_by(study_name=study, trial_number=trial))

    def evaluations(self, study: str) -> pd.DataFrame:
        """Return a study's final table: one row per trial, with all that is known about it."""
        query = (
            select(*EVALUATION_COLUMNS)
            .outerjoin(ArchitectureRow, EvaluationRow.architecture == ArchitectureRow.digest)
            .outerjoin(AccuracyRow, EvaluationRow.accuracy_id == AccuracyRow.id)
            .outerjoin(LatencyRow, EvaluationRow.latency_id == LatencyRow.id)
            .where(EvaluationRow.study_name == study)
            .order_by(EvaluationRow.trial_number)
        )
        with self._session() as session:
            rows = [tuple(row) for row in session.execute(query)]
        return pd.DataFrame(rows, columns=[column.name for column in EVALUATION_COLUMNS])

    def add_front(
        self,
        study: str,
        trial: int,
        members: Sequence[Mapping[str, Any]],
        *,
        hypervolume: float,
        reference_point: tuple[float, float],
    ) -> None:
        """Store the front as it is after a trial; `members` are JSON values."""
        row = FrontRow(
            study_name=study,
            trial_number=trial,
            members=[dict(member) for member in members],
            hypervolume=float(hypervolume),
            reference_point=[float(value) for value in reference_point],
        )
        with self._session() as session:
            session.add(row)

    def fronts(self, study: str) -> list[FrontRow]:
        """Return a study's fronts, from the first to the latest."""
        return self._of_study(FrontRow, study)

    def add_run(self, study: str, **values: Any) -> int:
        """Store that a run starts, and return its number.

        Runs of the study that never ended are marked as interrupted: a study has one run at a time.

        Args:
            study: name of the study.
            values: columns of `nas.searcher.tables.RunRow`; `started` and `status` have defaults.
        """
        running = (RunRow.study_name == study) & (RunRow.status == "running")
        row = RunRow(study_name=study, **values)
        with self._session() as session:
            session.execute(update(RunRow).where(running).values(status="interrupted"))
            session.add(row)
            session.flush()
            return row.id

    def end_run(self, run: int, status: str, message: str = "") -> None:
        """Store how a run ended: `finished`, `interrupted` or `failed`.

        Raises:
            StorageError: another status.
        """
        _check_name("status of a run", status, _RUN_STATES)
        values = {"status": status, "message": message, "ended": datetime.now(UTC)}
        with self._session() as session:
            session.execute(update(RunRow).where(RunRow.id == run).values(values))

    @contextmanager
    def recorded(self, study: str, **values: Any) -> Iterator[None]:
        """Keep that a run began, and how it ended; arguments as in `add_run`."""
        run = self.add_run(study, **values)
        status, message = "failed", ""
        try:
            yield
            status = "finished"
        except KeyboardInterrupt:
            status, message = "interrupted", "stopped by the user"
            raise
        except NasError as error:
            message = str(error)
            raise
        finally:
            self.end_run(run, status, message)

    def runs(self, study: str) -> list[RunRow]:
        """Return a study's runs, from the first to the latest."""
        return self._of_study(RunRow, study)

    def latest_run(self, study: str | None = None, command: str = "search") -> RunRow | None:
        """Return the run of a command that started last, of a study or of any."""
        query = select(RunRow).filter_by(command=command).order_by(RunRow.id.desc())
        if study is not None:
            query = query.filter_by(study_name=study)
        with self._session() as session:
            return session.scalars(query.limit(1)).first()

    def delete_study(self, study: str) -> None:
        """Forget what a study found and its runs; caches stay, as other studies use them."""
        with self._session() as session:
            for table in (AblationRow, EvaluationRow, FrontRow, ReportRow, RunRow, TrainingRow):
                session.execute(delete(table).where(table.study_name == study))

    # An ablation study: its trainings

    def add_ablation(self, study: str, **values: Any) -> None:
        """Store what a variant came to with a seed; a second call replaces the first.

        Args:
            study: name of the study.
            values: columns of `nas.searcher.tables.AblationRow`.
        """
        row = {"study_name": study, **values}
        self._upsert(AblationRow, row, keys=["study_name", "variant", "seed"], replace=row)

    def ablation_rows(self, study: str) -> list[AblationRow]:
        """Return the trainings of an ablation study, in the order in which they were stored."""
        return self._of_study(AblationRow, study)

    def ablations(self, study: str) -> pd.DataFrame:
        """Return the trainings of an ablation study, variant by variant, with their results."""
        query = (
            select(*ABLATION_COLUMNS)
            .join(ArchitectureRow, AblationRow.architecture == ArchitectureRow.digest)
            .outerjoin(AccuracyRow, AblationRow.accuracy_id == AccuracyRow.id)
            .where(AblationRow.study_name == study)
            .order_by(AblationRow.position, AblationRow.variant, AblationRow.seed)
        )
        with self._session() as session:
            rows = [tuple(row) for row in session.execute(query)]
        return pd.DataFrame(rows, columns=[column.name for column in ABLATION_COLUMNS])

    # What a study is worth: networks trained for themselves, and reports about them

    def add_training(self, study: str, **values: Any) -> None:
        """Store what a training came to on a split; a second call replaces the first.

        Args:
            study: name of the study.
            values: columns of `nas.searcher.tables.TrainingRow`.
        """
        row = {"study_name": study, **values}
        keys = ["study_name", "purpose", "architecture", "precision"]
        keys += ["start", "recipe", "seed", "split"]
        self._upsert(TrainingRow, row, keys=keys, replace=row)

    def trainings(self, study: str, purpose: str) -> list[TrainingRow]:
        """Return the trainings of a study for a purpose, in the order in which they were stored."""
        return [row for row in self._of_study(TrainingRow, study) if row.purpose == purpose]

    def add_report(self, study: str, kind: str, content: Mapping[str, Any]) -> None:
        """Store a report: plain values for JSON."""
        with self._session() as session:
            session.add(ReportRow(study_name=study, kind=kind, content=dict(content)))

    def find_report(self, study: str, kind: str) -> dict[str, Any] | None:
        """Return the latest report of a kind about a study."""
        reports = [row for row in self._of_study(ReportRow, study) if row.kind == kind]
        return reports[-1].content if reports else None

    # How it is done

    def _make_folder(self) -> None:
        path = sqlite_path(self.url)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The folder of a database must exist or be made, and {path.parent} cannot: "
                f"{error.strerror}.",
                "Give a path that you may write to.",
            ) from error

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with (
            translated(self.url),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def _first(self, table: type[_AnyRow], **values: Any) -> _AnyRow | None:
        with self._session() as session:
            return session.scalars(select(table).filter_by(**values).limit(1)).first()

    def _of_study(self, table: type[_AnyRow], study: str) -> list[_AnyRow]:
        with self._session() as session:
            rows = session.scalars(select(table).filter_by(study_name=study).order_by("id"))
            return list(rows)

    def _upsert(
        self,
        table: type[Row],
        values: Mapping[str, Any],
        *,
        keys: Sequence[str],
        replace: Mapping[str, Any] | None = None,
    ) -> int:
        """Insert a row, or replace some values of the one with its keys; return its id, if any."""
        insert = sqlite.insert if self.url.get_backend_name() == "sqlite" else postgresql.insert
        statement = insert(table).values(**values)
        changed = {name: value for name, value in (replace or {}).items() if name not in keys}
        if changed:
            statement = statement.on_conflict_do_update(index_elements=keys, set_=changed)
        else:
            statement = statement.on_conflict_do_nothing(index_elements=keys)
        with self._session() as session:
            if not changed or not hasattr(table, "id"):
                session.execute(statement)
                return 0
            return int(session.execute(statement.returning(table.id)).scalar_one())


def _agreement_columns(agreement: Agreement | None) -> dict[str, Any]:
    return {
        "agreement": agreement.share if agreement else None,
        "compared_images": agreement.images if agreement else None,
        "compared_with": agreement.reference if agreement else None,
    }


def _agreement_of(row: AccuracyRow) -> Agreement | None:
    if row.compared_images is None or row.compared_with is None:
        return None
    return Agreement(row.agreement, row.compared_images, row.compared_with)


def _estimate_columns(estimate: Estimate) -> dict[str, Any]:
    return {
        "fidelity": estimate.fidelity,
        "estimate": float(estimate.map50_95),
        "estimate_low": float(estimate.low),
        "estimate_high": float(estimate.high),
        "estimate_images": estimate.images,
        "estimate_iterations": estimate.iterations,
    }


def _latency_columns(architecture: str, latency: Latency) -> dict[str, Any]:
    """Return a latency as it was told, and the row that it was measured in, if it was."""
    environment = latency.environment.digest
    # A meter's keys in the store name the environment a second time.
    keys = [architecture, f"{architecture}@{environment}"]
    same = (LatencyRow.environment == environment) & LatencyRow.key.in_(keys)
    return {
        "latency_ms": float(latency.ms),
        "latency_low_ms": float(latency.low_ms),
        "latency_high_ms": float(latency.high_ms),
        "latency_source": latency.source,
        "environment": environment,
        "latency_id": select(LatencyRow.id).where(same).limit(1).scalar_subquery(),
    }


def _check_name(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise StorageError(f"A {what} is one of {', '.join(known)}, got {name!r}.")
