"""The audit log as a page of entries, and what its search form asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.audit import service
from api.audit.service import Wanted
from models.api_key import Project
from models.audit import AuditEntry
from models.errors import DomainError

PAGE_SIZE = 50
MAX_CHARACTERS = 256
#: Pages that show what an entry speaks of, by the kind of its subject; {} is the subject's id.
SUBJECT_PAGES = {"policy": "/dashboard/policies/{}", "job": "/dashboard/jobs/{}"}


class UnknownDate(DomainError):
    """A date is written year-month-day, such as 2026-05-31."""

    code = "unknown_date"


@dataclass(frozen=True, slots=True)
class Search:
    """What the form holds. Days are in UTC, as the log is; both ends are included."""

    text: str = ""
    action: str = ""
    actor: str = ""
    subject: str = ""
    project: str = ""
    since: str = ""
    until: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether everything is shown."""
        return not any(getattr(self, field.name) for field in fields(self))

    def address(self, page: str = "", **changed: str) -> str:
        """Give the address of a page with this search, some of it changed."""
        asked = {field.name: getattr(self, field.name) for field in fields(self)} | changed
        query = urlencode({name: value for name, value in asked.items() if value})
        return f"/dashboard/audit{page}" + (f"?{query}" if query else "")

    def wanted(self) -> Wanted:
        """Give it as the service asks.

        Raises:
            UnknownDate: an end of the time is no date.
        """
        since, until = _day(self.since), _day(self.until)
        return Wanted(
            actions=_one(self.action),
            actor_key_ids=_one(self.actor),
            subject_ids=_one(self.subject),
            project_ids=_one(self.project),
            since=int(since.timestamp()) if since else None,
            until=int((until + timedelta(days=1)).timestamp()) - 1 if until else None,
            text=self.text or None,
        )


@dataclass(frozen=True, slots=True)
class EntryLine:
    """One entry, and what it may be followed to."""

    entry: AuditEntry
    project_name: str

    @property
    def subject_page(self) -> str | None:
        """The page of what was acted on, where there is one."""
        if self.entry.subject_kind == "model":
            job = self.entry.details.get("job")
            return f"/dashboard/jobs/{job}" if job else None
        page = SUBJECT_PAGES.get(self.entry.subject_kind)
        return page.format(self.entry.subject_id) if page else None

    @property
    def details(self) -> str:
        """The facts, as they were written."""
        return json.dumps(self.entry.details, indent=2, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class EntryList:
    """A page of the log, newest first."""

    lines: tuple[EntryLine, ...]
    actions: Sequence[str]
    projects: Sequence[Project]
    next_after: str | None


def list_entries(session: Session, search: Search, after: str | None) -> EntryList:
    """Give a page of what is searched for."""
    found, has_more = service.list_entries(session, search.wanted(), after=after, limit=PAGE_SIZE)
    named = {entry.project_id for entry in found if entry.project_id} | set(_one(search.project))
    projects = session.scalars(select(Project).where(Project.id.in_(named))).all()
    names = {project.id: project.name for project in projects}
    return EntryList(
        lines=tuple(EntryLine(entry, names.get(entry.project_id or "", "")) for entry in found),
        actions=service.known_actions(session),
        projects=projects,
        next_after=found[-1].id if has_more else None,
    )


def _one(value: str) -> tuple[str, ...]:
    return (value,) if value else ()


def _day(text: str) -> datetime | None:
    if not text:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise UnknownDate from error
    # Nothing was written before, and nothing has a date beyond.
    return min(max(day, datetime(1971, 1, 1, tzinfo=UTC)), datetime(9998, 1, 1, tzinfo=UTC))
