"""Measurements in the place of predictions and estimates, in a study that is already there.

A search for a device that was elsewhere ran on estimates. Where the device is, its candidates are
measured, and what was told about them is put right: first in our tables, candidate by candidate, so
that a process that dies loses the measurement in flight and nothing else; then in Optuna's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from nas.errors import EngineError, ExportError, MeasurementError, NasError, StudyError
from nas.latency.hardware import Hardware
from nas.latency.latency import Latency
from nas.latency.measurable import runtime_for
from nas.latency.meter import LatencyMeter
from nas.latency.oracle import MeasuringOracle
from nas.searcher.connection import LockedError, exclusive, translated
from nas.searcher.database import Database
from nas.searcher.latency_judge import LatencyJudge
from nas.searcher.opening import open_storage, quiet_optuna
from nas.searcher.progress import Listener
from nas.searcher.request import Request
from nas.searcher.result import candidate_of
from nas.searcher.rewriting import retold, rewrite_study

__all__ = ["Upgrade", "upgrade_study"]

_SURE = ("measured", "cached")
_COLUMNS = (
    *("trial", "precision", "source", "before_ms", "before_low_ms", "before_high_ms"),
    *("ms", "low_ms", "high_ms"),
)


@dataclass(frozen=True)
class Upgrade:
    """What became of a study's latencies.

    Attributes:
        study: its name.
        changes: one row for each trial whose candidate was measured: `trial`, `precision`,
            `source`, `before_ms`, `before_low_ms`, `before_high_ms`, `ms`, `low_ms`, `high_ms`.
        failed: trials whose candidates could not be measured; they keep what they had.
    """

    study: str
    changes: pd.DataFrame
    failed: int

    @property
    def held(self) -> float:
        """Share of the earlier intervals that hold what was measured; NaN without any."""
        table = self.changes
        return float(table["ms"].between(table["before_low_ms"], table["before_high_ms"]).mean())

    @property
    def median_error(self) -> float:
        """Median of |before / measured - 1|; NaN without any."""
        return float((self.changes["before_ms"] / self.changes["ms"] - 1).abs().median())


def upgrade_study(request: Request, database: Database, listener: Listener) -> Upgrade:
    """Measure every candidate of a study that was not measured yet, the most accurate first.

    Args:
        request: with the name of a study, its hardware and runtime.
        database: where it lives.
        listener: hears how it goes.

    Raises:
        StudyError: the study has no evaluations, or another process searches it.
        MeasurementError: its device is not attached.
        EngineError: not one of its candidates could be measured.
    """
    name = str(request.study)
    hardware = Hardware.named(request.hardware, request.workspace.hardware)
    runtime = runtime_for(hardware, request.runtime)
    try:
        with exclusive(database.engine, f"study {name}", timeout_s=1):
            todo = _unsure(database.evaluations(name), name)
            with LatencyMeter(
                hardware,
                runtime,
                precisions=sorted(set(todo["precision"])),
                store=database,
                isolated=True,
                on_wait=listener.say,
            ) as meter:
                judge = LatencyJudge(MeasuringOracle(meter, predicts=False), database, "")
                upgrade = _measure(name, todo, judge, database, listener)
            _correct(name, database)
    except LockedError as error:
        raise StudyError(
            f"Only one process may change the study {name!r} at a time, and {error.holder} does.",
            "Wait until it ends, or end it.",
        ) from error
    return upgrade


def _unsure(table: pd.DataFrame, study: str) -> pd.DataFrame:
    """Return the evaluations whose latency was not measured, the most accurate first."""
    if table.empty:
        raise StudyError(
            f"The study {study!r} has no evaluations.", "Look at its name, or search first."
        )
    known = table[table["latency_ms"].notna() & ~table["latency_source"].isin(_SURE)]
    return known.sort_values(["map50_95", "latency_ms"], ascending=[False, True])


def _measure(
    study: str, todo: pd.DataFrame, judge: LatencyJudge, database: Database, listener: Listener
) -> Upgrade:
    listener.stage("Measure the study", len(todo))
    changes: list[dict[str, Any]] = []
    failures: list[NasError] = []
    for done, (_, row) in enumerate(todo.iterrows(), start=1):
        trial = int(row["trial_number"])
        try:
            found = judge(candidate_of(row, database))
        except (EngineError, ExportError, MeasurementError) as error:
            failures.append(error)
            listener.say(f"Trial {trial} keeps its latency: {error}", warning=True)
            continue
        database.replace_latency(study, trial, architecture=str(row["architecture"]), latency=found)
        changes.append(_change(row, found))
        listener.advance(done, f"{row['latency_ms']:.3f} -> {found.ms:.3f} ms")
    if failures and not changes:
        raise failures[0]
    return Upgrade(study, pd.DataFrame(changes, columns=list(_COLUMNS)), len(failures))


def _change(row: pd.Series, found: Latency) -> dict[str, Any]:
    return {
        "trial": int(row["trial_number"]),
        "precision": row["precision"],
        "source": row["latency_source"],
        "before_ms": row["latency_ms"],
        "before_low_ms": row["latency_low_ms"],
        "before_high_ms": row["latency_high_ms"],
        "ms": found.ms,
        "low_ms": found.low_ms,
        "high_ms": found.high_ms,
    }


def _correct(study: str, database: Database) -> None:
    """Make Optuna's trials say what our table says, if they do not."""
    rows = {row["trial_number"]: row for row in database.evaluations(study).to_dict("records")}

    def row_of(trial: FrozenTrial) -> Mapping[Any, Any]:
        return rows.get(trial.user_attrs.get("duplicate_of", trial.number), {})

    def change(trial: FrozenTrial) -> FrozenTrial:
        row = row_of(trial)
        return _corrected(trial, row) if _differs(trial, row) else trial

    with quiet_optuna(), open_storage(database) as storage, translated(database.url):
        trials = storage.get_all_trials(storage.get_study_id_from_name(study), deepcopy=False)
        if any(_differs(trial, row_of(trial)) for trial in trials):
            rewrite_study(storage, study, change)


def _differs(trial: FrozenTrial, row: Mapping[Any, Any]) -> bool:
    told = row.get("latency_ms")
    return (
        trial.state == TrialState.COMPLETE
        and told is not None
        and math.isfinite(told)
        and trial.values[1] != told  # noqa: PD011 - a trial's
    )


def _corrected(trial: FrozenTrial, row: Mapping[Any, Any]) -> FrozenTrial:
    """Return a trial with the latency of its row, judged by the budget that it was told under."""
    latency_ms = float(row["latency_ms"])
    attributes = {
        name: row[name] for name in ("latency_low_ms", "latency_high_ms", "latency_source")
    }
    violation = latency_ms - float(trial.user_attrs["budget_ms"])
    accuracy, _ = trial.values  # noqa: PD011 - as above
    return retold(trial, [accuracy, latency_ms], attributes, {"latency": violation})
