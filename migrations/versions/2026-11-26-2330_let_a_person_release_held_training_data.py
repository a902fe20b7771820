"""let a person release held training data."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "5b1d6c0f83ea"
down_revision = "4be1f0c27d93"
branch_labels = None
depends_on = None

HOW_IT_STANDS = "review in ('waiting', 'released', 'rejected', 'expired', 'withdrawn')"


def upgrade() -> None:
    op.add_column("screenings", sa.Column("review", sa.String(), nullable=True))
    op.add_column("screenings", sa.Column("review_reason", sa.String(), nullable=True))
    op.add_column("screenings", sa.Column("reviewed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(op.f("ck_screenings_review"), "screenings", HOW_IT_STANDS)


def downgrade() -> None:
    # Nobody could decide on data any more, and no model has been made that might be reviewed.
    op.execute(
        "update jobs set status = 'failed', finished_at = now(), error_code = 'data_held', "
        "error_message = 'The training data was held for a person.', review_expires_at = null "
        "where status = 'running' and stage = 'data_review'"
    )
    op.execute("update jobs set stage = 'screen' where stage = 'data_review'")
    op.drop_constraint(op.f("ck_screenings_review"), "screenings", type_="check")
    op.drop_column("screenings", "reviewed_at")
    op.drop_column("screenings", "review_reason")
    op.drop_column("screenings", "review")
