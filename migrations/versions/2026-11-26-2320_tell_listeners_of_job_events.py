"""tell listeners of job events."""

from __future__ import annotations

from alembic import op

revision = "4be1f0c27d93"
down_revision = "9d25c3b8a71f"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Sent when the transaction commits, once for each job in it. Every change of a job's status comes with an
    # event. The project goes along, so that who hears it need not ask whose job it is.
    op.execute(
        """
        create function tell_job_events() returns trigger language plpgsql as $$
        begin
            perform pg_notify('titer_job', jobs.project_id || ' ' || jobs.id)
            from jobs where jobs.id in (select added.job_id from added);
            return null;
        end $$
        """
    )
    op.execute(
        "create trigger job_events_told after insert on job_events referencing new table as added "
        "for each statement execute function tell_job_events()"
    )


def downgrade() -> None:
    op.execute("drop trigger job_events_told on job_events")
    op.execute("drop function tell_job_events()")
