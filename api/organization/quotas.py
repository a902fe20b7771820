"""What a project may use, what it uses, and the refusal of more.

Checks are made under a lock of the project's, which is kept until the transaction ends: what is checked
must be stored in the same transaction, and then two requests never pass a limit together. The limit of
running jobs is kept where workers claim (`models.fair_queue`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.deps import QUOTAS
from api.locks import lock_name
from models.base import utc_now
from models.errors import TooManyRequests, Unauthorized
from models.file import File
from models.job import Job, JobStatus
from models.project import Project, Quotas
from models.upload import Upload, UploadPart, UploadStatus

# A paused job counts: otherwise pausing would make room for a queue without end.
WAITING = (JobStatus.QUEUED, JobStatus.VALIDATING_FILES, JobStatus.PAUSED)
#: How each limit is spoken of.
WORDS: Mapping[str, str] = {
    "jobs_running": "jobs running at once",
    "jobs_queued": "jobs waiting",
    "bytes_stored": "bytes stored",
    "training_tokens_month": "tokens trained this month",
    "gpu_seconds_month": "GPU seconds this month",
}


class QuotaExceeded(TooManyRequests):
    """The project's quota is used up."""

    code = "insufficient_quota"

    def __init__(self, quota: str, *, limit: int, used: int, more: int = 0) -> None:
        """Name the quota, its limit and the present use."""
        self.quota, self.limit, self.used = quota, limit, used
        asked = f", and this request needs {more:,} more" if more > 1 else ""
        super().__init__(
            f"The project's quota {quota!r} does not allow this: at most {limit:,} {WORDS[quota]}; "
            f"at present it is {used:,}{asked}."
        )

    def extra(self) -> dict[str, object]:
        """Say the same to programs."""
        return {"quota": self.quota, "limit": self.limit, "used": self.used}

    def headers(self) -> Mapping[str, str]:
        """Waiting does not help soon enough for a client to try again by itself."""
        return {"x-should-retry": "false"}


def check_job(session: Session, project_id: str) -> None:
    """Let one more job into the project's queue.

    Raises:
        QuotaExceeded: too many wait already, or the month's tokens or GPU seconds are used up.
        Unauthorized: the project was archived while the request was on its way.
    """
    limits = _lock(session, "jobs", project_id)
    for quota in ("jobs_queued", "training_tokens_month", "gpu_seconds_month"):
        limit = getattr(limits, quota)
        if limit and (used := MEASURES[quota].of(session, project_id)) >= limit:
            raise QuotaExceeded(quota, limit=limit, used=used)


def check_bytes(session: Session, project_id: str, more: int) -> None:
    """Let the project store so many more bytes.

    Raises:
        QuotaExceeded: with them it would store too many.
        Unauthorized: the project was archived while the request was on its way.
    """
    limit = _lock(session, "bytes", project_id).bytes_stored
    if limit and (used := MEASURES["bytes_stored"].of(session, project_id)) + more > limit:
        raise QuotaExceeded("bytes_stored", limit=limit, used=used, more=more)


def show_use(session: Session, project_id: str) -> dict[str, int]:
    """Give what a project uses at present, by the name of the quota."""
    return {quota: measure.of(session, project_id) for quota, measure in MEASURES.items()}


def limits_of(session: Session, project: Project) -> Quotas:
    """Give the limits that hold for a project."""
    defaults: Quotas = session.info.get(QUOTAS, Quotas())
    return project.quotas(defaults)


def lock_jobs(session: Session, project_id: str) -> None:
    """Keep new jobs of the project waiting until the transaction ends."""
    lock_name(session, "quota", "jobs", project_id)


def _lock(session: Session, what: str, project_id: str) -> Quotas:
    lock_name(session, "quota", what, project_id)
    # Read after the lock: an operator may have changed the limits, or archived the project.
    project = session.get_one(Project, project_id, populate_existing=True)
    if project.archived_at is not None:
        raise Unauthorized("The project of this API key is archived.")
    return limits_of(session, project)


def month_start(moment: datetime) -> datetime:
    """Give the beginning of the calendar month, in the moment's own zone."""
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum over rows of one table, each of them a project's."""

    project_id: InstrumentedAttribute[str]
    total: Callable[[], ColumnElement[Any]]
    which: Callable[[], tuple[ColumnElement[bool], ...]]


class Measure:
    """How the use of one quota is measured: one sum, or several together."""

    def __init__(self, *sums: Sum) -> None:
        """Add these up."""
        self._sums = sums

    def of(self, session: Session, project_id: str) -> int:
        """Give what one project uses."""
        used = 0
        for part in self._sums:
            query = select(part.total()).where(part.project_id == project_id, *part.which())
            used += int(session.scalar(query) or 0)
        return used

    def of_each(self, session: Session) -> dict[str, int]:
        """Give what each project uses that uses anything."""
        used: Counter[str] = Counter()
        for part in self._sums:
            query = select(part.project_id, part.total()).where(*part.which())
            for project_id, total in session.execute(query.group_by(part.project_id)):
                used[project_id] += int(total or 0)
        return used


def _running() -> tuple[ColumnElement[bool], ...]:
    return (
        Job.finished_at.is_(None),
        Job.status == JobStatus.RUNNING,
        Job.lease_expires_at.is_not(None),
    )


def _waiting() -> tuple[ColumnElement[bool], ...]:
    return Job.finished_at.is_(None), Job.status.in_(WAITING)


def _kept() -> tuple[ColumnElement[bool], ...]:
    return (File.deleted_at.is_(None),)


def _pending() -> tuple[ColumnElement[bool], ...]:
    # Parts of uploads that have ended are the sweeper's, within seconds.
    return Upload.id == UploadPart.upload_id, Upload.status == UploadStatus.PENDING


def _of_month() -> tuple[ColumnElement[bool], ...]:
    return (or_(Job.finished_at.is_(None), Job.finished_at >= month_start(utc_now())),)


def _gpu_seconds() -> ColumnElement[Any]:
    # A job that a worker has at this moment has used more than its ended attempts.
    held = func.extract("epoch", func.least(utc_now(), Job.lease_expires_at) - Job.claimed_at)
    so_far = case((Job.lease_expires_at.is_not(None), func.coalesce(held, 0)), else_=0)
    return func.sum(Job.gpu_seconds + so_far)


MEASURES: Mapping[str, Measure] = {
    "jobs_running": Measure(Sum(Job.project_id, func.count, _running)),
    "jobs_queued": Measure(Sum(Job.project_id, func.count, _waiting)),
    "bytes_stored": Measure(
        Sum(File.project_id, lambda: func.sum(File.bytes), _kept),
        Sum(Upload.project_id, lambda: func.sum(UploadPart.bytes), _pending),
    ),
    "training_tokens_month": Measure(
        Sum(Job.project_id, lambda: func.sum(Job.trained_tokens), _of_month)
    ),
    "gpu_seconds_month": Measure(Sum(Job.project_id, _gpu_seconds, _of_month)),
}
