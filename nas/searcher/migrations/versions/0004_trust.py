"""Networks trained for themselves, and reports of what a study is worth."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEY = (
    *("study_name", "purpose", "architecture", "precision"),
    *("start", "recipe", "seed", "split"),
)


def upgrade() -> None:
    op.create_table(
        "nas_trainings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_name", sa.String(512), nullable=False),
        sa.Column("purpose", sa.String(64), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("architecture", sa.String(64), nullable=False),
        sa.Column("precision", sa.String(64), nullable=False),
        sa.Column("start", sa.String(64), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("split", sa.String(64), nullable=False),
        sa.Column("map50_95", sa.Double(), nullable=False),
        sa.Column("low", sa.Double()),
        sa.Column("high", sa.Double()),
        sa.Column("map50", sa.Double()),
        sa.Column("artifact", sa.String(64), nullable=False),
        sa.Column("resampled", sa.JSON(), nullable=False),
        sa.Column("iterations", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nas_trainings"),
        sa.ForeignKeyConstraint(
            ["architecture"],
            ["nas_architectures.digest"],
            name="fk_nas_trainings_architecture",
        ),
        sa.UniqueConstraint(*_KEY, name="uq_nas_trainings"),
    )
    op.create_table(
        "nas_reports",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_name", sa.String(512), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nas_reports"),
    )
    op.create_index("ix_nas_reports_study_name", "nas_reports", ["study_name"])


def downgrade() -> None:
    op.drop_table("nas_reports")
    op.drop_table("nas_trainings")
