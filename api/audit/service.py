"""Reading the audit log. Nothing here writes: `models.audit.record` does, beside what it tells of."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Select, any_, func, literal, select
from sqlalchemy.orm import Session

from api.audit.schemas import AuditObject, LogProject, OrganizationLog
from models.api_key import Project
from models.audit import AuditEntry, tells_of
from models.errors import NotFound
from models.session import SessionFactory

EXPORT_PART = 1_000
#: So many entries are few enough to be looked up by their places.
RARE = 5_000
CLOCKS_DIFFER = timedelta(days=1)
# Beyond these a day more or less has no date.
EARLIEST, LATEST = datetime(1971, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
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
    #: Words that an entry must have, or that some of its words must begin with.
    text: str | None = None

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
        if self.text is not None:
            query = query.where(tells_of(self.text))
        if self.since is not None:
            since = datetime.fromtimestamp(self.since, UTC)
            query = query.where(AuditEntry.created_at >= since, *_not_before(since))
        if self.until is not None:
            until = datetime.fromtimestamp(self.until, UTC)
            query = query.where(AuditEntry.created_at <= until, *_not_after(until))
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
    query = _rare(session, wanted)
    if query is None:
        query = wanted.query()
    if after is not None:
        query = query.where(AuditEntry.position < _position(session, after, "after"))
    if before is not None:
        query = query.where(AuditEntry.position > _position(session, before, "before"))
    found = session.scalars(query.order_by(AuditEntry.position.desc()).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def known_actions(session: Session) -> Sequence[str]:
    """Give every action that the log has, in order, with a look at each of them and not at each entry."""
    actions = select(func.min(AuditEntry.action).label("action")).cte(recursive=True)
    following = select(func.min(AuditEntry.action)).where(AuditEntry.action > actions.c.action)
    actions = actions.union_all(
        select(following.scalar_subquery()).where(actions.c.action.is_not(None))
    )
    return session.scalars(
        select(actions.c.action).where(actions.c.action.is_not(None)).order_by(actions.c.action)
    ).all()


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


def _rare(session: Session, wanted: Wanted) -> Select[AuditEntry] | None:
    """Select what is searched for by its places, where words make it little; else nothing.

    A page wants the newest of what matches, and the database takes no word for rarer than one entry in two hundred: it
    would look for one that is rare, or not there at all, through every entry from the newest on.
    """
    if wanted.text is None:
        return None
    matching = wanted.query().with_only_columns(AuditEntry.position).limit(RARE + 1)
    positions = session.scalars(matching).all()
    if len(positions) > RARE:
        return None
    return select(AuditEntry).where(
        AuditEntry.position == any_(literal(positions, ARRAY(BigInteger)))
    )


# Pages go by position, and a range of times that is long ago is a range of positions: without being told, the
# database would walk to it through all that came since. Clocks of several machines may differ, and a day is more
# than any of them do.
def _not_before(since: datetime) -> tuple[ColumnElement[bool], ...]:
    if since < EARLIEST:
        return ()
    first = (
        select(AuditEntry.position)
        .where(AuditEntry.created_at >= since - CLOCKS_DIFFER)
        .order_by(AuditEntry.created_at, AuditEntry.position)
        .limit(1)
    )
    return (AuditEntry.position >= first.scalar_subquery(),)


def _not_after(until: datetime) -> tuple[ColumnElement[bool], ...]:
    if until > LATEST:
        return ()
    last = (
        select(AuditEntry.position)
        .where(AuditEntry.created_at <= until + CLOCKS_DIFFER)
        .order_by(AuditEntry.created_at.desc(), AuditEntry.position.desc())
        .limit(1)
    )
    return (AuditEntry.position <= last.scalar_subquery(),)


def _position(session: Session, entry_id: str, param: str) -> int:
    position = session.scalar(select(AuditEntry.position).where(AuditEntry.id == entry_id))
    if position is None:
        raise AuditEntryNotFound(param=param)
    return position


def _line(shown: dict[str, Any]) -> bytes:
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
