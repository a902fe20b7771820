"""add certificates, and the jobs that make them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "b1c0e3a7d952"
down_revision = "5870dd43ff94"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "certificates",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("version_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("plan_hash", sa.String(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_certificates_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_versions.id"],
            name=op.f("fk_certificates_version_id_model_versions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificates")),
        sa.UniqueConstraint("job_id", name=op.f("uq_certificates_job_id")),
    )
    op.create_index(
        "ix_certificates_version_id_created_at",
        "certificates",
        ["version_id", "created_at"],
        unique=False,
    )
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(
        op.f("ck_jobs_kind"), "jobs", "kind in ('align', 'certify', 'finetune')"
    )


def downgrade() -> None:
    op.drop_index("ix_certificates_version_id_created_at", table_name="certificates")
    op.drop_table("certificates")
    # Without their kind these jobs cannot stay, nor can their logs.
    op.execute(
        "delete from job_events using jobs where jobs.id = job_events.job_id and jobs.kind = 'certify'"
    )
    op.execute("delete from jobs where kind = 'certify'")
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", "kind in ('align', 'finetune')")
