"""measure registered models in jobs: a kind of its own."""

from __future__ import annotations

from alembic import op

revision = "d3e7a4096b1c"
down_revision = "c5a9d2e81f47"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(
        op.f("ck_jobs_kind"), "jobs", "kind in ('align', 'certify', 'evaluate', 'finetune')"
    )


def downgrade() -> None:
    # Without their kind these jobs cannot stay, nor can their logs and what they measured.
    op.execute(
        "delete from job_events using jobs where jobs.id = job_events.job_id and jobs.kind = 'evaluate'"
    )
    op.execute(
        "delete from evaluations using jobs where jobs.id = evaluations.job_id and jobs.kind = 'evaluate'"
    )
    op.execute("delete from jobs where kind = 'evaluate'")
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(
        op.f("ck_jobs_kind"), "jobs", "kind in ('align', 'certify', 'finetune')"
    )
