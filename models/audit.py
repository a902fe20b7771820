"""The audit log: who did what to what, in entries that are only ever added.

Each entry carries the SHA-256 of its content, and the content names the hash of the entry before it: an entry
that is changed, taken out or put in between breaks the chain, and `verify` says where. The database refuses
UPDATE, DELETE and TRUNCATE besides. Whoever owns the database can still write a whole new chain; a head (position and
hash) that was noted elsewhere finds that out.

Details are facts for programs: ids, names, numbers. Never row text, prompts, completions or keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, ColumnElement, Computed, Index, func, select
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.api_key import ApiKey
from models.audit_chain import GENESIS, ChainReport, Head, check_chain, hash_content
from models.base import Base, new_id, unix, utc_now

MAX_DETAILS_BYTES = 16 * 1024
MAX_REASON = 2_000
#: Of a search; more narrow it no further.
MAX_WORDS = 16
_LOCK = "audit_entries"


#: What separates words in ids and actions, so that a part of one can be looked for.
_SEPARATORS = '.:/_-@+,"'


class AuditEntry(Base):
    """One entry. No foreign keys: an entry outlives what it speaks of."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_action_position", "action", "position"),
        Index("ix_audit_entries_subject_id_position", "subject_id", "position"),
        Index("ix_audit_entries_project_id_position", "project_id", "position"),
        Index("ix_audit_entries_actor_key_id_position", "actor_key_id", "position"),
        Index("ix_audit_entries_subject_kind_position", "subject_kind", "position"),
        Index("ix_audit_entries_created_at_position", "created_at", "position"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("audit"))
    #: Place in the chain, from 1, without gaps.
    position: Mapped[int] = mapped_column(BigInteger, unique=True)
    #: In whole seconds, as it is hashed and shown.
    created_at: Mapped[datetime]
    #: Noun and past participle, such as `policy.created`.
    action: Mapped[str]
    #: Empty when the service itself acted, or whoever holds the database.
    actor_key_id: Mapped[str | None]
    actor_name: Mapped[str]
    actor_project_id: Mapped[str | None]
    subject_kind: Mapped[str]
    subject_id: Mapped[str]
    #: The tenant that the action concerns, if it concerns one.
    project_id: Mapped[str | None]
    reason: Mapped[str | None]
    #: As JSON, not JSONB: that would write numbers anew, and the hash is over the text.
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    previous_sha256: Mapped[str]
    sha256: Mapped[str]

    def content(self) -> dict[str, object]:
        """Give what the hash is over, which is also what is shown."""
        return {
            "id": self.id,
            "position": self.position,
            "created_at": unix(self.created_at),
            "action": self.action,
            "actor": {
                "key_id": self.actor_key_id,
                "name": self.actor_name,
                "project_id": self.actor_project_id,
            },
            "subject": {"kind": self.subject_kind, "id": self.subject_id},
            "project_id": self.project_id,
            "reason": self.reason,
            "details": self.details,
            "previous_sha256": self.previous_sha256,
        }


# Beside the mapped ones: it is looked in, and never read. Without a language, so that names, ids and words of any
# tongue stay as they are.
WORDS = Column(
    "words",
    TSVECTOR,
    Computed(
        "to_tsvector('simple'::regconfig, translate((action || ' ' || actor_name || ' ' || subject_kind || ' ' "
        "|| subject_id || ' ' || coalesce(project_id, '') || ' ' || coalesce(reason, '') || ' ' || details::text), "
        f"'{_SEPARATORS}', '{' ' * len(_SEPARATORS)}'))",
        persisted=True,
    ),
)
Base.metadata.tables["audit_entries"].append_column(WORDS)
Index("ix_audit_entries_words", WORDS, postgresql_using="gin")


def tells_of(text: str) -> ColumnElement[bool]:
    """Select entries that have every word of a text, each at least as the beginning of one of theirs."""
    words = re.findall(r"[^\W_]+", text)
    asked = " & ".join(f"{word}:*" for word in words[:MAX_WORDS])
    return WORDS.bool_op("@@")(func.to_tsquery("simple", asked))


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acted, by the key that was used; the service and the database's holder have none."""

    name: str
    key_id: str | None = None
    project_id: str | None = None

    @classmethod
    def of(cls, key: ApiKey) -> Actor:
        """Name whoever holds a key."""
        return cls(name=key.name, key_id=key.id, project_id=key.project_id)


#: The service acts by itself: the gate, the sweeper.
SERVICE = Actor("titer")
#: Somebody with the database at hand, where no key is asked for.
DATABASE = Actor("titer db")


def record(
    session: Session,
    *,
    actor: ApiKey | Actor,
    action: str,
    subject: tuple[str, str],
    project_id: str | None = None,
    reason: str | None = None,
    details: Mapping[str, object] | None = None,
) -> AuditEntry:
    """Add an entry, in the transaction of what it tells of.

    Call it after every other lock is taken: it takes one that is held until the transaction ends.

    Args:
        session: the transaction.
        actor: the key that was used, or one of `SERVICE` and `DATABASE`.
        action: noun and past participle, such as `policy.created`.
        subject: kind and id of what was acted on.
        project_id: the tenant that it concerns.
        reason: a person's words; cut to `MAX_REASON` characters.
        details: further facts, JSON, at most `MAX_DETAILS_BYTES`; never row text or keys.

    Raises:
        ValueError: the details are no JSON, or too long.
    """
    facts = json.dumps(dict(details or {}), allow_nan=False)
    if len(facts) > MAX_DETAILS_BYTES:
        raise ValueError("the details of an audit entry are too long")
    who = Actor.of(actor) if isinstance(actor, ApiKey) else actor
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(_LOCK, 0))))
    newest = session.execute(
        select(AuditEntry.position, AuditEntry.sha256).order_by(AuditEntry.position.desc()).limit(1)
    ).one_or_none()
    position, previous = newest or (0, GENESIS)
    entry = AuditEntry(
        id=new_id("audit"),
        position=position + 1,
        created_at=utc_now().replace(microsecond=0),
        action=action,
        actor_key_id=who.key_id,
        actor_name=who.name,
        actor_project_id=who.project_id,
        subject_kind=subject[0],
        subject_id=subject[1],
        project_id=project_id,
        reason=None if reason is None else reason[:MAX_REASON],
        # As it will be read back: a tuple, for one, comes back as a list.
        details=json.loads(facts),
        previous_sha256=previous,
    )
    entry.sha256 = hash_content(entry.content())
    session.add(entry)
    session.flush()
    return entry


def verify(session: Session, noted: Head | None = None) -> ChainReport:
    """Check the whole stored chain, reading it in parts."""
    stored = session.scalars(
        select(AuditEntry).order_by(AuditEntry.position).execution_options(yield_per=1_000)
    )
    return check_chain(((entry.content(), entry.sha256) for entry in stored), noted)
