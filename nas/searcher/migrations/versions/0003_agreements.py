"""How far engines find what their networks find in fp32."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nas_accuracies", sa.Column("agreement", sa.Double()))
    op.add_column("nas_accuracies", sa.Column("compared_images", sa.Integer()))
    op.add_column("nas_accuracies", sa.Column("compared_with", sa.String(64)))


def downgrade() -> None:
    for name in ("agreement", "compared_images", "compared_with"):
        op.drop_column("nas_accuracies", name)
