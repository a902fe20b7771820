"""add what traces go on from, and the indexes that metrics read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "202b455bc84d"
down_revision = "5b1d6c0f83ea"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("traceparent", sa.String(), nullable=True))
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])
    op.create_index("ix_evaluations_created_at", "evaluations", ["created_at"])


def downgrade() -> None:
    op.drop_index("ix_evaluations_created_at", table_name="evaluations")
    op.drop_index("ix_jobs_finished_at", table_name="jobs")
    op.drop_column("jobs", "traceparent")
