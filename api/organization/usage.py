"""What projects used, in buckets of days or months (UTC). A job counts where it ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sqlalchemy import DateTime, cast, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.orm import Session

from api.organization.quotas import month_start
from models.errors import DomainError
from models.file import File
from models.job import Job

# Rows of 0 for years would be all that earlier times have to tell.
EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)


class InvalidPeriod(DomainError):
    """The period ends before it begins, or lies outside 2020 to 2200."""

    code = "invalid_period"


class Width(StrEnum):
    """How long a bucket is."""

    DAY = "1d"
    MONTH = "1mo"

    @property
    def usual(self) -> int:
        """How many buckets are shown when nobody says."""
        return 31 if self is Width.DAY else 12

    def floor(self, moment: datetime) -> datetime:
        """Give the beginning of the bucket that the moment is in."""
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        return day if self is Width.DAY else month_start(day)

    def after(self, start: datetime) -> datetime:
        """Give the end of the bucket that begins here."""
        if self is Width.DAY:
            return start + timedelta(days=1)
        return month_start(start + timedelta(days=31))


@dataclass(slots=True)
class Used:
    """What one project used in one bucket. `bytes` is what was stored at its end."""

    jobs: int = 0
    trained_tokens: int = 0
    gpu_seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """One stretch of time, by project."""

    start: datetime
    end: datetime
    used: dict[str, Used]


def read_usage(
    session: Session,
    *,
    start: datetime,
    end: datetime,
    width: Width,
    limit: int,
    project_ids: Sequence[str] | None,
) -> tuple[list[Bucket], datetime | None]:
    """Give the buckets that a period touches, and where the next page begins.

    Args:
        session: to read with.
        start: the first moment of the period.
        end: the first moment after it.
        width: of a bucket.
        limit: the most buckets.
        project_ids: whose; None is everyone's.

    Raises:
        InvalidPeriod: it ends before it begins, or lies too far away.
    """
    if not EARLIEST <= start < end <= LATEST:
        raise InvalidPeriod(param="start_time")
    buckets: list[Bucket] = []
    at = width.floor(start)
    while at < end and len(buckets) < limit:
        buckets.append(Bucket(at, width.after(at), defaultdict(Used)))
        at = width.after(at)
    _add_jobs(session, buckets, width, project_ids)
    _add_bytes(session, buckets, project_ids)
    return buckets, at if at < end else None


def _add_jobs(
    session: Session, buckets: list[Bucket], width: Width, project_ids: Sequence[str] | None
) -> None:
    unit = "day" if width is Width.DAY else "month"
    bucket = func.date_trunc(unit, Job.finished_at, "UTC", type_=DateTime(timezone=True))
    query = (
        select(
            bucket,
            Job.project_id,
            func.count(),
            func.sum(Job.trained_tokens),
            func.sum(Job.gpu_seconds),
        )
        .where(Job.finished_at >= buckets[0].start, Job.finished_at < buckets[-1].end)
        .group_by(bucket, Job.project_id)
    )
    if project_ids is not None:
        query = query.where(Job.project_id.in_(project_ids))
    by_start = {bucket.start: bucket for bucket in buckets}
    for start, project_id, jobs, tokens, seconds in session.execute(query):
        used = by_start[start.astimezone(UTC)].used[project_id]
        used.jobs, used.trained_tokens, used.gpu_seconds = jobs, int(tokens or 0), seconds or 0.0


def _add_bytes(session: Session, buckets: list[Bucket], project_ids: Sequence[str] | None) -> None:
    ends = select(
        func.unnest(
            cast(array([bucket.end for bucket in buckets]), ARRAY(DateTime(timezone=True)))
        ).label("at")
    ).subquery()
    query = (
        select(ends.c.at, File.project_id, func.sum(File.bytes))
        .join(ends, File.created_at < ends.c.at)
        .where(or_(File.deleted_at.is_(None), File.deleted_at >= ends.c.at))
        .group_by(ends.c.at, File.project_id)
    )
    if project_ids is not None:
        query = query.where(File.project_id.in_(project_ids))
    by_end = {bucket.end: bucket for bucket in buckets}
    for end, project_id, total in session.execute(query):
        by_end[end.astimezone(UTC)].used[project_id].bytes = int(total or 0)
