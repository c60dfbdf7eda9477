"""Our own tables, in the same database as Optuna's study: what the rest of the project sees of SQL.

`Database` stores what was measured, so that nothing is measured twice, what networks that were
trained for themselves came to, and here what became of a study: its evaluations, its fronts and its
runs. Storing the same thing twice is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import pandas as pd
from sqlalchemy import delete, select, update

from nas.errors import NasError, StorageError
from nas.latency.latency import Latency
from nas.searcher.columns import EVALUATION_COLUMNS
from nas.searcher.estimate import Estimate
from nas.searcher.measurement_tables import MeasurementTables
from nas.searcher.tables import (
    AblationRow,
    AccuracyRow,
    ArchitectureRow,
    EvaluationRow,
    FrontRow,
    LatencyRow,
    ReportRow,
    RunRow,
    TrainingRow,
)
from nas.searcher.training_tables import TrainingTables

__all__ = ["Database", "State"]

State = Literal["complete", "stopped", "infeasible", "failed", "duplicate"]
"""What can become of a trial; a stopped one was scored in part, and left at that."""

_RUN_STATES = ("running", "finished", "interrupted", "failed")


class Database(MeasurementTables, TrainingTables):
    """All of our tables; opened as `nas.searcher.open_database.OpenDatabase` says."""

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
        return self._frame(query)

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
