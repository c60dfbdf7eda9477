"""What a study found: its evaluations, its front, and the candidate to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nas.errors import StudyError
from nas.searcher.database import Database
from nas.searcher.score import Score
from nas.space.architecture import Architecture, Candidate
from nas.space.front import front_indices, hypervolume, multipliers
from nas.units import Budget

__all__ = ["FULL_TRUST", "SHORT_TRUST", "StudyResult", "candidate_of", "find_trust"]

FULL_TRUST, SHORT_TRUST = "trust", "trust-short"
"""Kinds of reports in the database: of `nas trust`, and of the check inside a search."""


@dataclass(frozen=True)
class StudyResult:
    """The state of a study, as the database has it.

    Attributes:
        study: its name.
        budget: the hard bound that the front keeps.
        score: what orders the front and picks the winner.
        evaluations: one row per trial, with everything known about it.
        trust: the report on whether its ranking holds, as `Trust.as_dict` gives it; None if that
            was never checked.
    """

    study: str
    budget: Budget
    score: Score
    evaluations: pd.DataFrame
    trust: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, database: Database, study: str, budget: Budget, score: Score) -> StudyResult:
        """Read a study back."""
        table = database.evaluations(study).rename(columns={"trial_number": "trial"})
        return cls(study, budget, score, table, find_trust(database, study))

    @property
    def scored(self) -> pd.DataFrame:
        """The distinct candidates that have an accuracy and keep the budget, with their score."""
        table = self.evaluations
        table = table[table["map50_95"].notna() & table["latency_ms"].notna()]
        table = table[table["latency_ms"] <= self.budget.latency_ms]
        table = table.drop_duplicates(["architecture", "precision"]).copy()
        table["score"] = [
            self.score(accuracy, latency_ms)
            for accuracy, latency_ms in zip(table["map50_95"], table["latency_ms"], strict=True)
        ]
        return table.reset_index(drop=True)

    @property
    def front(self) -> pd.DataFrame:
        """The non-dominated candidates under the budget, best score first.

        `lambda_low` and `lambda_high` say for which lambda each is the best; NaN: for none.
        """
        table = self.scored
        chosen = front_indices(table["map50_95"], table["latency_ms"])
        table = table.iloc[chosen].reset_index(drop=True)
        lambdas = multipliers(table["map50_95"], table["latency_ms"])
        table["lambda_low"], table["lambda_high"] = lambdas.T
        return table.sort_values("score", ascending=False).reset_index(drop=True)

    @property
    def stopped(self) -> pd.DataFrame:
        """The distinct candidates with an estimate in the place of an accuracy; on no front."""
        keys = ["architecture", "precision"]
        whole = self.evaluations[self.evaluations["map50_95"].notna()].set_index(keys).index
        table = self.evaluations[self.evaluations["state"] == "stopped"]
        table = table[~table.set_index(keys).index.isin(whole)]
        return table.drop_duplicates(keys, keep="last").reset_index(drop=True)

    @property
    def exchange_rate(self) -> float:
        """What the last of the budget buys, mAP per ms: the largest lambda whose best is there.

        It is 0 if the fastest candidate is the most accurate one, too.
        """
        table = self.front
        rates = [
            high
            for low, high in zip(table["lambda_low"], table["lambda_high"], strict=True)
            if low == 0 and math.isfinite(high)
        ]
        return float(max(rates, default=0.0))

    @property
    def hypervolume(self) -> float:
        """Area under the front, from mAP 0 and the budget, in mAP x ms."""
        table = self.scored
        return hypervolume(table["map50_95"], table["latency_ms"], (0.0, self.budget.latency_ms))

    def row(self, trial: int | None = None) -> pd.Series:
        """Return one candidate's row: the best by score, or that of a trial.

        Raises:
            StudyError: nothing keeps the budget, or the trial does not exist or has no accuracy.
        """
        if trial is None:
            if self.front.empty:
                raise StudyError(
                    f"No candidate of the study {self.study!r} keeps the budget of {self.budget}.",
                    "Search with a larger budget.",
                )
            return self.front.iloc[0]
        rows = self.evaluations[self.evaluations["trial"] == trial]
        if rows.empty or rows["map50_95"].isna().all():
            known = ", ".join(str(n) for n in self.front["trial"])
            raise StudyError(
                f"Trial {trial} of the study {self.study!r} has no accuracy.",
                f"The front has the trials: {known}.",
            )
        return rows.iloc[0]

    def trial_of(self, candidate: Candidate) -> int | None:
        """Return the trial that scored a candidate; None if none did."""
        table = self.scored
        same = table["architecture"] == candidate.architecture.digest
        trials = table.loc[same & (table["precision"] == candidate.precision), "trial"]
        return int(trials.iloc[0]) if len(trials) else None


def find_trust(database: Database, study: str) -> dict[str, Any] | None:
    """Return the latest report on the ranking of a study; a full one before a later short one."""
    return database.find_report(study, FULL_TRUST) or database.find_report(study, SHORT_TRUST)


def candidate_of(row: pd.Series, database: Database) -> Candidate:
    """Rebuild the candidate of a row of `StudyResult.evaluations`.

    Raises:
        StudyError: the database no longer has its description.
    """
    stored = database.find_architecture(str(row["architecture"]))
    if stored is None:
        raise StudyError(f"The architecture {row['architecture']} is not in {database}.")
    return Candidate(architecture=Architecture.from_yaml(stored.text), precision=row["precision"])
