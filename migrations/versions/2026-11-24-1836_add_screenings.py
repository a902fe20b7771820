"""add screenings: what judges say of training rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "3f729d80e189"
down_revision = "c7d41e09ab36"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "screenings",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("judges", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("done", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("row_threshold", sa.Double(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("max_harmful_share", sa.Double(), nullable=True),
        sa.Column("policy_version", sa.Integer(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_screenings_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_screenings")),
    )
    op.create_table(
        "screened_rows",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("category", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["screenings.job_id"], name=op.f("fk_screened_rows_job_id_screenings")
        ),
        sa.PrimaryKeyConstraint("job_id", "line", name=op.f("pk_screened_rows")),
    )
    op.create_index(
        "ix_screened_rows_flagged",
        "screened_rows",
        ["job_id", "line", "votes"],
        unique=False,
        postgresql_where=sa.text("votes > 0"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_screened_rows_flagged",
        table_name="screened_rows",
        postgresql_where=sa.text("votes > 0"),
    )
    op.drop_table("screened_rows")
    op.drop_table("screenings")
