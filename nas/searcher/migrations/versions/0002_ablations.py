"""The trainings of ablation studies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "nas_ablations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_name", sa.String(512), nullable=False),
        sa.Column("variant", sa.String(512), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("changed", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("after", sa.String(), nullable=False),
        sa.Column("architecture", sa.String(64), nullable=False),
        sa.Column("precision", sa.String(64), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("recipe_values", sa.JSON(), nullable=False),
        sa.Column("accuracy_id", sa.Integer()),
        sa.Column("resampled", sa.JSON(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("latency_low_ms", sa.Double(), nullable=False),
        sa.Column("latency_high_ms", sa.Double(), nullable=False),
        sa.Column("latency_source", sa.String(64), nullable=False),
        sa.Column("environment", sa.String(64), nullable=False),
        sa.Column("iterations", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["accuracy_id"],
            ["nas_accuracies.id"],
            name="fk_nas_ablations_accuracy_id",
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["architecture"], ["nas_architectures.digest"], name="fk_nas_ablations_architecture"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_nas_ablations"),
        sa.UniqueConstraint("study_name", "variant", "seed", name="uq_nas_ablations"),
    )


def downgrade() -> None:
    op.drop_table("nas_ablations")
