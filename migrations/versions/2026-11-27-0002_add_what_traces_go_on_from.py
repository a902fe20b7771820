"""add what traces go on from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "202b455bc84d"
down_revision = "c2a95e7740d1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("traceparent", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "traceparent")
