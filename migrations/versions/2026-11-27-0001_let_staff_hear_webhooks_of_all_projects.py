"""let staff hear webhooks of all projects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c2a95e7740d1"
down_revision = "b7d2f5a90c13"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "webhook_endpoints",
        sa.Column("all_projects", sa.Boolean(), server_default=sa.false(), nullable=False),
    )


def downgrade() -> None:
    # They would go on as endpoints of their own project alone, which nobody asked for.
    op.execute("delete from webhook_endpoints where all_projects")
    op.drop_column("webhook_endpoints", "all_projects")
