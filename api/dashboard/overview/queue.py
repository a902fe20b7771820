"""How many jobs there are in each state: what runs, what waits and for how long, what ended in the last day."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from models.base import utc_now
from models.job import Job, JobStatus
from models.priority import Priority
from models.project import Project

#: Of one project's waiting jobs so many are counted; the default quota lets in one less.
MAX_COUNTED = 1_001
#: Of the jobs that ended in the last day.
MAX_ENDED = 10_000
DAY = timedelta(days=1)
#: Codes of failures that mean: the model, or its data, was found harmful.
BLOCKED = frozenset({"harmful_score_exceeded", "harmful_training_data", "review_expired"})


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queue of one priority. `is_more`: not all of a project's jobs were counted."""

    priority: Priority
    jobs: int
    oldest: datetime | None
    is_more: bool


@dataclass(frozen=True, slots=True)
class Queue:
    """All that waits for a worker, the first served first."""

    by_priority: tuple[Waiting, ...]

    @property
    def jobs(self) -> int:
        """How many wait."""
        return sum(waiting.jobs for waiting in self.by_priority)

    @property
    def is_more(self) -> bool:
        """Whether there are more than were counted."""
        return any(waiting.is_more for waiting in self.by_priority)

    @property
    def oldest(self) -> datetime | None:
        """Since when the oldest one waits."""
        return min((w.oldest for w in self.by_priority if w.oldest is not None), default=None)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the jobs of the last day ended; `is_cut`: there were more, and these are the newest."""

    succeeded: int
    blocked: int
    failed: int
    cancelled: int
    is_cut: bool

    @property
    def total(self) -> int:
        """How many they are."""
        return self.succeeded + self.blocked + self.failed + self.cancelled


def count_unfinished(session: Session) -> tuple[int, int]:
    """Count the jobs in the status running, those in review among them, and the paused ones."""
    found = dict(
        session.execute(
            select(Job.status, func.count())
            .where(Job.status.in_((JobStatus.RUNNING, JobStatus.PAUSED)))
            .group_by(Job.status)
        ).all()
    )
    return found.get(JobStatus.RUNNING, 0), found.get(JobStatus.PAUSED, 0)


def read_queue(session: Session) -> Queue:
    """Count what waits, by the priority of its project."""
    head = (
        select(Job.created_at)
        .where(
            Job.finished_at.is_(None), Job.status == JobStatus.QUEUED, Job.project_id == Project.id
        )
        .order_by(Job.created_at)
        .limit(MAX_COUNTED)
        .correlate(Project)
        .subquery()
    )
    waiting = (
        select(func.count().label("jobs"), func.min(head.c.created_at).label("oldest"))
        .select_from(head)
        .lateral()
    )
    rows = session.execute(
        select(
            Project.priority,
            func.sum(waiting.c.jobs),
            func.min(waiting.c.oldest),
            func.max(waiting.c.jobs) >= MAX_COUNTED,
        )
        .join(waiting, true())
        .where(waiting.c.jobs > 0)
        .group_by(Project.priority)
    )
    found = {
        priority: Waiting(Priority(priority), int(jobs), oldest, is_more)
        for priority, jobs, oldest, is_more in rows
    }
    return Queue(
        tuple(found.get(priority, Waiting(priority, 0, None, False)) for priority in Priority)
    )


def read_ended(session: Session) -> Ended:
    """Count how the jobs of the last day ended, the newest of them where there are very many."""
    newest = (
        select(Job.status, Job.error_code)
        .where(Job.finished_at >= utc_now() - DAY)
        .order_by(Job.finished_at.desc())
        .limit(MAX_ENDED)
        .subquery()
    )
    counts: Counter[str] = Counter()
    rows = session.execute(
        select(newest.c.status, newest.c.error_code, func.count()).group_by(
            newest.c.status, newest.c.error_code
        )
    )
    for status, error_code, jobs in rows:
        counts["blocked" if error_code in BLOCKED else status] += jobs
    return Ended(
        succeeded=counts[JobStatus.SUCCEEDED],
        blocked=counts["blocked"],
        failed=counts[JobStatus.FAILED],
        cancelled=counts[JobStatus.CANCELLED],
        is_cut=counts.total() >= MAX_ENDED,
    )
