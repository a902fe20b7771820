"""Whose job is next: priority, then the tenant with the fewest running, then who waited longest for a turn.

A doorbell says only that there is work. Whoever hears it takes the fairest waiting job, which need not be
the one that it was rung for; so a tenant with a thousand jobs in the queue delays another by one job at most.

    priority of the project ─► fewest jobs running ─► longest without one taken ─► oldest job of that project

A project that has as many running as its quota allows is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, case, func, or_, select, true
from sqlalchemy.orm import Session

from models.job import Job, JobStatus, Lease, claim
from models.priority import Priority
from models.project import Project

# Any number that no other advisory lock has.
CLAIM_LOCK = 0x7469746572


def claim_next(
    session: Session, *, owner: str, lease_seconds: int, jobs_running: int = 0
) -> Lease | None:
    """Take the fairest waiting job; None when there is none that may run.

    `jobs_running` bounds the running jobs of a project that has no limit of its own; 0 is no limit.
    """
    # One claim after the other: two that count at the same moment would both take the same tenant's turn,
    # and pass its limit together.
    session.execute(select(func.pg_advisory_xact_lock(CLAIM_LOCK)))
    for project_id in _in_turn(session, jobs_running):
        # A job that somebody holds a lock on is about to change, most likely to be cancelled.
        job_id = session.scalar(
            select(Job.id)
            .where(*_waiting(), Job.project_id == project_id)
            .order_by(Job.created_at, Job.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if job_id is not None:
            return claim(session, job_id, owner=owner, lease_seconds=lease_seconds)
    return None


def _waiting() -> tuple[ColumnElement[bool], ...]:
    # Together they are what the index `ix_jobs_unfinished` is about.
    return Job.finished_at.is_(None), Job.status == JobStatus.QUEUED


def _in_turn(session: Session, jobs_running: int) -> Sequence[str]:
    """Give the projects that have a job to take, the one whose turn it is first."""
    # A look into the index for each project: what counts is how many tenants there are, not how many jobs.
    waiting = (
        select(Job.created_at.label("oldest"))
        .where(*_waiting(), Job.project_id == Project.id)
        .order_by(Job.created_at)
        .limit(1)
        .lateral()
    )
    running = (
        select(Job.project_id, func.count().label("jobs"))
        .where(
            Job.finished_at.is_(None),
            Job.status == JobStatus.RUNNING,
            # A job in review runs in name only: no worker has it.
            Job.lease_expires_at.is_not(None),
        )
        .group_by(Job.project_id)
        .subquery()
    )
    last_served = (
        select(func.max(Job.claimed_at)).where(Job.project_id == Project.id).scalar_subquery()
    )
    busy = func.coalesce(running.c.jobs, 0)
    limit = func.coalesce(Project.quota_jobs_running, jobs_running)
    rank = case({Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}, value=Project.priority)
    return session.scalars(
        select(Project.id)
        .join(waiting, true())
        .outerjoin(running, running.c.project_id == Project.id)
        .where(or_(limit == 0, busy < limit))
        .order_by(rank, busy, last_served.asc().nulls_first(), waiting.c.oldest, Project.id)
    ).all()
