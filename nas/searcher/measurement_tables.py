"""What was measured, under whatever study: stored once, and found again by the next one.

Networks and environments by digest; latencies under the key of a meter; accuracies by artifact,
weights and data. Storing the same thing twice is harmless.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import select

from nas.accuracy.evaluate import Accuracy, Agreement
from nas.latency.clock import Timing
from nas.latency.hardware import Environment
from nas.latency.latency import Latency, Source
from nas.searcher.open_database import OpenDatabase
from nas.searcher.tables import (
    AccuracyRow,
    ArchitectureRow,
    EnvironmentRow,
    LatencyRow,
    ReferenceRow,
    SubsetScoreRow,
)

__all__ = ["MeasurementTables"]


class MeasurementTables(OpenDatabase):
    """The tables that outlive a study; part of `nas.searcher.database.Database`."""

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
