"""Reading the audit log. Nothing here writes: `models.audit.record` does, beside what it tells of."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.audit.schemas import AuditObject, LogProject, OrganizationLog
from models.api_key import Project
from models.audit import AuditEntry
from models.errors import NotFound
from models.session import SessionFactory

EXPORT_PART = 1_000
#: OpenAI's words for what both logs know; every other action keeps its own.
OPENAI_WORDS = {
    "key.created": "api_key.created",
    "key.updated": "api_key.updated",
    "key.revoked": "api_key.deleted",
    "model.deleted": "resource.deleted",
}


class AuditEntryNotFound(NotFound):
    """No such audit entry."""

    code = "audit_entry_not_found"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries are asked for; an empty filter lets all pass. Times are Unix seconds, both ends included."""

    actions: Collection[str] = ()
    actor_key_ids: Collection[str] = ()
    subject_kind: str | None = None
    subject_ids: Collection[str] = ()
    project_ids: Collection[str] = ()
    since: int | None = None
    until: int | None = None

    def query(self) -> Select[AuditEntry]:
        """Select them, in no order yet."""
        query = select(AuditEntry)
        for column, values in (
            (AuditEntry.action, self.actions),
            (AuditEntry.actor_key_id, self.actor_key_ids),
            (AuditEntry.subject_id, self.subject_ids),
            (AuditEntry.project_id, self.project_ids),
        ):
            if values:
                query = query.where(column.in_(values))
        if self.subject_kind is not None:
            query = query.where(AuditEntry.subject_kind == self.subject_kind)
        if self.since is not None:
            query = query.where(AuditEntry.created_at >= datetime.fromtimestamp(self.since, UTC))
        if self.until is not None:
            query = query.where(AuditEntry.created_at <= datetime.fromtimestamp(self.until, UTC))
        return query


def list_entries(
    session: Session,
    wanted: Wanted,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int,
) -> tuple[Sequence[AuditEntry], bool]:
    """Give one page, newest first, and whether more follow.

    Raises:
        AuditEntryNotFound: a cursor names no entry.
    """
    query = wanted.query()
    if after is not None:
        query = query.where(AuditEntry.position < _position(session, after, "after"))
    if before is not None:
        query = query.where(AuditEntry.position > _position(session, before, "before"))
    found = session.scalars(query.order_by(AuditEntry.position.desc()).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def export(sessions: SessionFactory, wanted: Wanted) -> Iterator[bytes]:
    """Give every entry that is asked for as a line of JSON, oldest first, a short session for each part."""
    position = 0
    while True:
        with sessions() as session:
            found = session.scalars(
                wanted.query()
                .where(AuditEntry.position > position)
                .order_by(AuditEntry.position)
                .limit(EXPORT_PART)
            ).all()
        if not found:
            return
        position = found[-1].position
        yield b"".join(_line(AuditObject.of(entry).model_dump(mode="json")) for entry in found)


def show_as_openai(session: Session, entries: Sequence[AuditEntry]) -> list[OrganizationLog]:
    """Show entries in the shape of OpenAI's audit log."""
    wanted = {entry.project_id for entry in entries if entry.project_id is not None}
    names = {
        project.id: project.name
        for project in session.scalars(select(Project).where(Project.id.in_(wanted)))
    }
    return [
        OrganizationLog.of(
            entry,
            OPENAI_WORDS.get(entry.action, entry.action),
            LogProject(id=entry.project_id, name=names.get(entry.project_id, ""))
            if entry.project_id
            else None,
        )
        for entry in entries
    ]


def own_words(types: Collection[str]) -> list[str]:
    """Give our actions for OpenAI's types."""
    ours = {theirs: own for own, theirs in OPENAI_WORDS.items()}
    return [ours.get(word, word) for word in types]


def _position(session: Session, entry_id: str, param: str) -> int:
    position = session.scalar(select(AuditEntry.position).where(AuditEntry.id == entry_id))
    if position is None:
        raise AuditEntryNotFound(param=param)
    return position


def _line(shown: dict[str, Any]) -> bytes:
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
