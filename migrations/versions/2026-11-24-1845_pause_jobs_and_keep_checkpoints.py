"""pause jobs and keep checkpoints."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0ecc7a62a50b"
down_revision = "3f729d80e189"
branch_labels = None
depends_on = None

WORDS = "'validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    op.create_table(
        "job_checkpoints",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("version_name", sa.String(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_checkpoints_job_id_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_checkpoints")),
        sa.UniqueConstraint("job_id", "step", name=op.f("uq_job_checkpoints_job_id_step")),
    )
    op.add_column(
        "jobs",
        sa.Column(
            "integrations",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="[]",
            nullable=False,
        ),
    )
    op.add_column(
        "jobs", sa.Column("pause_requested_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.drop_constraint(op.f("ck_jobs_status"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_status"), "jobs", f"status in ({WORDS}, 'paused')")


def downgrade() -> None:
    # A job that nobody can wake any more would wait for ever.
    op.execute("update jobs set status = 'cancelled', finished_at = now() where status = 'paused'")
    op.drop_constraint(op.f("ck_jobs_status"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_status"), "jobs", f"status in ({WORDS})")
    op.drop_column("jobs", "pause_requested_at")
    op.drop_column("jobs", "integrations")
    op.drop_table("job_checkpoints")
