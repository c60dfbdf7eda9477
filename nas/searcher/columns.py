"""What is read back of a study: columns of our tables, joined, by their names in a data frame."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement

from nas.searcher.tables import (
    AblationRow,
    AccuracyRow,
    ArchitectureRow,
    EvaluationRow,
    LatencyRow,
)

__all__ = ["ABLATION_COLUMNS", "EVALUATION_COLUMNS"]

_ACCURACY_COLUMNS: tuple[ColumnElement[Any], ...] = (
    AccuracyRow.map50_95.label("map50_95"),
    AccuracyRow.low.label("map50_95_low"),
    AccuracyRow.high.label("map50_95_high"),
    AccuracyRow.map50.label("map50"),
    AccuracyRow.map_small.label("map_small"),
    AccuracyRow.map_medium.label("map_medium"),
    AccuracyRow.map_large.label("map_large"),
    AccuracyRow.data.label("data"),
    AccuracyRow.split.label("split"),
    AccuracyRow.weights.label("weights"),
    AccuracyRow.artifact.label("artifact"),
    AccuracyRow.images.label("images"),
    AccuracyRow.agreement.label("agreement"),
    AccuracyRow.compared_images.label("compared_images"),
    AccuracyRow.compared_with.label("compared_with"),
)

EVALUATION_COLUMNS: tuple[ColumnElement[Any], ...] = (
    EvaluationRow.trial_number.label("trial_number"),
    EvaluationRow.architecture.label("architecture"),
    EvaluationRow.precision.label("precision"),
    EvaluationRow.state.label("state"),
    EvaluationRow.latency_ms.label("latency_ms"),
    EvaluationRow.latency_low_ms.label("latency_low_ms"),
    EvaluationRow.latency_high_ms.label("latency_high_ms"),
    EvaluationRow.latency_source.label("latency_source"),
    EvaluationRow.environment.label("environment"),
    *_ACCURACY_COLUMNS,
    AccuracyRow.seconds.label("accuracy_seconds"),
    EvaluationRow.fidelity.label("fidelity"),
    EvaluationRow.estimate.label("estimate"),
    EvaluationRow.estimate_low.label("estimate_low"),
    EvaluationRow.estimate_high.label("estimate_high"),
    EvaluationRow.estimate_images.label("estimate_images"),
    EvaluationRow.estimate_iterations.label("estimate_iterations"),
    EvaluationRow.score.label("score"),
    ArchitectureRow.parameters.label("parameters"),
    ArchitectureRow.macs.label("macs"),
    LatencyRow.runs.label("runs"),
    LatencyRow.converged.label("converged"),
    LatencyRow.other_load.label("other_load"),
    EvaluationRow.error.label("error"),
    EvaluationRow.created.label("created"),
)
"""The columns of a study's final table, by their names there."""

ABLATION_COLUMNS: tuple[ColumnElement[Any], ...] = (
    AblationRow.variant.label("variant"),
    AblationRow.seed.label("seed"),
    AblationRow.kind.label("kind"),
    AblationRow.changed.label("changed"),
    AblationRow.before.label("before"),
    AblationRow.after.label("after"),
    AblationRow.architecture.label("architecture"),
    AblationRow.precision.label("precision"),
    AblationRow.recipe.label("recipe"),
    *_ACCURACY_COLUMNS,
    AblationRow.resampled.label("resampled"),
    AblationRow.latency_ms.label("latency_ms"),
    AblationRow.latency_low_ms.label("latency_low_ms"),
    AblationRow.latency_high_ms.label("latency_high_ms"),
    AblationRow.latency_source.label("latency_source"),
    AblationRow.environment.label("environment"),
    ArchitectureRow.parameters.label("parameters"),
    ArchitectureRow.macs.label("macs"),
    AblationRow.iterations.label("iterations"),
    AblationRow.seconds.label("seconds"),
    AblationRow.created.label("created"),
)
"""The columns of an ablation study's table of trainings, by their names there."""
