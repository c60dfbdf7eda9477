"""The first tables: caches, evaluations, fronts and runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "nas_architectures",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("space", sa.String(64), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("parameters", sa.BigInteger()),
        sa.Column("macs", sa.BigInteger()),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_nas_architectures"),
    )
    op.create_table(
        "nas_environments",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("description", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_nas_environments"),
    )
    op.create_table(
        "nas_fronts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_name", sa.String(512), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("members", sa.JSON(), nullable=False),
        sa.Column("hypervolume", sa.Double(), nullable=False),
        sa.Column("reference_point", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nas_fronts"),
    )
    op.create_index("ix_nas_fronts_study_name", "nas_fronts", ["study_name"])

    op.create_table(
        "nas_latencies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(512), nullable=False),
        sa.Column("precision", sa.String(64), nullable=False),
        sa.Column("environment", sa.String(64), nullable=False),
        sa.Column("ms", sa.Double(), nullable=False),
        sa.Column("low_ms", sa.Double(), nullable=False),
        sa.Column("high_ms", sa.Double(), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("timing", sa.JSON()),
        sa.Column("runs", sa.Integer()),
        sa.Column("converged", sa.Boolean()),
        sa.Column("other_load", sa.Double()),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nas_latencies"),
        sa.UniqueConstraint("key", "environment", name="uq_nas_latencies"),
    )
    op.create_table(
        "nas_references",
        sa.Column("environment", sa.String(64), nullable=False),
        sa.Column("ms", sa.Double(), nullable=False),
        sa.Column("low_ms", sa.Double(), nullable=False),
        sa.Column("high_ms", sa.Double(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("environment", name="pk_nas_references"),
    )
    op.create_table(
        "nas_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_name", sa.String(512), nullable=False),
        sa.Column("command", sa.String(), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column("space", sa.String(64), nullable=False),
        sa.Column("data", sa.String(64), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("hardware", sa.String(64), nullable=False),
        sa.Column("runtime", sa.String(64), nullable=False),
        sa.Column("budget_ms", sa.Double()),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("commit", sa.String(64)),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True)),
        sa.Column("status", sa.String(64), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nas_runs"),
    )
    op.create_index("ix_nas_runs_study_name", "nas_runs", ["study_name"])

    op.create_table(
        "nas_accuracies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("architecture", sa.String(64), nullable=False),
        sa.Column("precision", sa.String(64), nullable=False),
        sa.Column("data", sa.String(64), nullable=False),
        sa.Column("split", sa.String(64), nullable=False),
        sa.Column("weights", sa.String(64), nullable=False),
        sa.Column("weights_digest", sa.String(64), nullable=False),
        sa.Column("artifact", sa.String(64), nullable=False),
        sa.Column("map50_95", sa.Double(), nullable=False),
        sa.Column("map50", sa.Double(), nullable=False),
        sa.Column("map_small", sa.Double()),
        sa.Column("map_medium", sa.Double()),
        sa.Column("map_large", sa.Double()),
        sa.Column("low", sa.Double()),
        sa.Column("high", sa.Double()),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double()),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["architecture"], ["nas_architectures.digest"], name="fk_nas_accuracies_architecture"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_nas_accuracies"),
        sa.UniqueConstraint(
            "architecture",
            "precision",
            "data",
            "split",
            "weights",
            "weights_digest",
            "artifact",
            name="uq_nas_accuracies",
        ),
    )
    op.create_table(
        "nas_evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_name", sa.String(512), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("architecture", sa.String(64), nullable=False),
        sa.Column("precision", sa.String(64), nullable=False),
        sa.Column("state", sa.String(64), nullable=False),
        sa.Column("latency_ms", sa.Double()),
        sa.Column("latency_low_ms", sa.Double()),
        sa.Column("latency_high_ms", sa.Double()),
        sa.Column("latency_source", sa.String(64)),
        sa.Column("environment", sa.String(64)),
        sa.Column("latency_id", sa.Integer()),
        sa.Column("accuracy_id", sa.Integer()),
        sa.Column("score", sa.Double()),
        sa.Column("score_lambda", sa.Double()),
        sa.Column("score_alpha", sa.Double()),
        sa.Column("score_beta", sa.Double()),
        sa.Column("error", sa.String()),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["accuracy_id"],
            ["nas_accuracies.id"],
            name="fk_nas_evaluations_accuracy_id",
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["architecture"], ["nas_architectures.digest"], name="fk_nas_evaluations_architecture"
        ),
        sa.ForeignKeyConstraint(
            ["latency_id"],
            ["nas_latencies.id"],
            name="fk_nas_evaluations_latency_id",
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_nas_evaluations"),
        sa.UniqueConstraint("study_name", "trial_number", name="uq_nas_evaluations"),
    )


def downgrade() -> None:
    op.drop_table("nas_evaluations")
    op.drop_table("nas_accuracies")
    op.drop_table("nas_runs")
    op.drop_table("nas_references")
    op.drop_table("nas_latencies")
    op.drop_table("nas_fronts")
    op.drop_table("nas_environments")
    op.drop_table("nas_architectures")
