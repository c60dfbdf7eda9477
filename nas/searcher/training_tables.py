"""Networks that were trained for themselves: variants of an ablation, landmarks, confirmations.

And the reports about them: what a study is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from sqlalchemy import select

from nas.accuracy.evaluate import Accuracy
from nas.searcher.columns import ABLATION_COLUMNS
from nas.searcher.open_database import OpenDatabase
from nas.searcher.tables import (
    AblationRow,
    AccuracyRow,
    ArchitectureRow,
    ReportRow,
    TrainingRow,
)

__all__ = ["TrainingTables"]

_OF_ACCURACY = ("split", "map50_95", "low", "high", "map50", "artifact")
"""What a row repeats of an accuracy."""


class TrainingTables(OpenDatabase):
    """The tables of trainings and reports; part of `nas.searcher.database.Database`."""

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
        return self._frame(query)

    def add_training(
        self, study: str, accuracy: Accuracy, resampled: Sequence[float], **values: Any
    ) -> None:
        """Store what a training came to on a split; a second call replaces the first.

        Args:
            study: name of the study.
            accuracy: of the trained network; it says the split.
            resampled: mAP50-95 on each resample of the images.
            values: the other columns of `nas.searcher.tables.TrainingRow`.
        """
        reached = {name: getattr(accuracy, name) for name in _OF_ACCURACY}
        row = {
            "study_name": study,
            **values,
            **reached,
            "resampled": [float(one) for one in resampled],
        }
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
        found = self.reports(study, kind)
        return found[-1] if found else None

    def reports(self, study: str, kind: str) -> list[dict[str, Any]]:
        """Return all reports of a kind about a study, in the order in which they were stored."""
        return [row.content for row in self._of_study(ReportRow, study) if row.kind == kind]
