"""Scores on part of the validation images, and what trials were told instead of an accuracy."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KEY = ("architecture", "precision", "data", "weights_digest", "artifact", "images")
_ESTIMATE = ("estimate", "estimate_low", "estimate_high")
_COUNTS = ("estimate_images", "estimate_iterations")


def upgrade() -> None:
    op.create_table(
        "nas_subset_scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("architecture", sa.String(64), nullable=False),
        sa.Column("precision", sa.String(64), nullable=False),
        sa.Column("data", sa.String(64), nullable=False),
        sa.Column("weights_digest", sa.String(64), nullable=False),
        sa.Column("artifact", sa.String(64), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("map50_95", sa.Double(), nullable=False),
        sa.Column("resampled", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double()),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nas_subset_scores"),
        sa.ForeignKeyConstraint(
            ["architecture"],
            ["nas_architectures.digest"],
            name="fk_nas_subset_scores_architecture",
        ),
        sa.UniqueConstraint(*_KEY, name="uq_nas_subset_scores"),
    )
    op.add_column("nas_evaluations", sa.Column("fidelity", sa.String(64)))
    for name in _ESTIMATE:
        op.add_column("nas_evaluations", sa.Column(name, sa.Double()))
    for name in _COUNTS:
        op.add_column("nas_evaluations", sa.Column(name, sa.Integer()))
    # Whatever was scored before this revision was scored on all images.
    op.execute("UPDATE nas_evaluations SET fidelity = 'whole' WHERE accuracy_id IS NOT NULL")


def downgrade() -> None:
    for name in ("fidelity", *_ESTIMATE, *_COUNTS):
        op.drop_column("nas_evaluations", name)
    op.drop_table("nas_subset_scores")
