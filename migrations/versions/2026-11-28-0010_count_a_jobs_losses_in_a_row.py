"""count a job's losses in a row: one that gets further with each worker is not given up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "b7c2e9f41a60"
down_revision = "e8b1d05c7f24"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("losses_in_a_row", "furthest_step"):
        op.add_column("jobs", sa.Column(column, sa.Integer(), nullable=False, server_default="0"))
    # What is under way keeps its count.
    op.execute("UPDATE jobs SET losses_in_a_row = lost_leases WHERE finished_at IS NULL")


def downgrade() -> None:
    for column in ("furthest_step", "losses_in_a_row"):
        op.drop_column("jobs", column)
