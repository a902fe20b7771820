"""What projects use of their quotas, all of them at once: counted by the sweeper, read by pages.

Between two counts the numbers are as old as `ProjectUse.counted_at`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, ColumnElement, Select, func, literal, select, union_all
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.organization.quotas import MEASURES
from models.base import utc_now
from models.project import Project, Quotas
from models.project_use import ProjectUse

#: How often the sweeper counts, and after how long a silence it counts as gone.
COUNTED_EVERY = timedelta(minutes=1)
SWEEPER_GONE_AFTER = 3 * COUNTED_EVERY
#: Rows that one statement writes.
BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Use:
    """How much of one limit a project uses; `limit` 0: there is none."""

    project_id: str
    project_name: str
    quota: str
    used: int
    limit: int

    @property
    def percent(self) -> float | None:
        """The used share, which passes 100 where a limit was lowered; none without a limit."""
        return 100.0 * self.used / self.limit if self.limit else None


def count_use(session: Session) -> int:
    """Count anew what each project uses; give how many projects there are. The caller commits."""
    now = utc_now()
    counted = {quota: measure.of_each(session) for quota, measure in MEASURES.items()}
    # In order: two sweepers that write the same rows must not wait for each other.
    projects = session.scalars(select(Project.id).order_by(Project.id)).all()
    rows = [
        {
            "project_id": project_id,
            "counted_at": now,
            **{quota: found.get(project_id, 0) for quota, found in counted.items()},
        }
        for project_id in projects
    ]
    for start in range(0, len(rows), BATCH):
        written = insert(ProjectUse).values(rows[start : start + BATCH])
        session.execute(
            written.on_conflict_do_update(
                index_elements=["project_id"],
                set_={name: written.excluded[name] for name in ("counted_at", *MEASURES)},
            )
        )
    return len(projects)


def nearest_limits(
    session: Session, defaults: Quotas, *, from_percent: float, at_most: int
) -> list[Use]:
    """Give the limits that are used up to so much, the fullest first.

    Args:
        session: an open session.
        defaults: the limits of projects that have none of their own.
        from_percent: the least used share.
        at_most: how many to give.
    """
    # As many as may run at once do run all day where there is enough to do: that is no pressure.
    quotas = [field.name for field in fields(Quotas) if field.name != "jobs_running"]
    near = union_all(*(_uses(quota, defaults, from_percent) for quota in quotas)).subquery()
    found = session.execute(
        select(near).order_by((near.c.used * 1.0 / near.c.limit).desc(), near.c.name).limit(at_most)
    )
    return [Use(*row) for row in found]


def most_stored(session: Session, defaults: Quotas, *, at_most: int) -> list[Use]:
    """Give the projects that store most, the largest first."""
    limit = _limit("bytes_stored", defaults)
    found = session.execute(
        select(Project.id, Project.name, ProjectUse.bytes_stored, limit)
        .join(ProjectUse, ProjectUse.project_id == Project.id)
        .where(ProjectUse.bytes_stored > 0)
        .order_by(ProjectUse.bytes_stored.desc(), Project.name)
        .limit(at_most)
    )
    return [Use(id, name, "bytes_stored", used, limit) for id, name, used, limit in found]


def last_count(session: Session) -> datetime | None:
    """Give when the sweeper counted last: it is alive if that is not long ago."""
    return session.scalar(select(func.max(ProjectUse.counted_at)))


def _uses(quota: str, defaults: Quotas, from_percent: float) -> Select[str, str, str, int, int]:
    used, limit = getattr(ProjectUse, quota), _limit(quota, defaults)
    return (
        select(
            Project.id,
            Project.name,
            literal(quota).label("quota"),
            used.label("used"),
            limit.label("limit"),
        )
        .join(ProjectUse, ProjectUse.project_id == Project.id)
        .where(Project.archived_at.is_(None), limit > 0, used * 100.0 >= limit * from_percent)
    )


def _limit(quota: str, defaults: Quotas) -> ColumnElement[int]:
    default = literal(getattr(defaults, quota), BigInteger)
    return func.coalesce(getattr(Project, f"quota_{quota}"), default)
