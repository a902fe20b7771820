"""Keys of people who sign in elsewhere: one each, whose secret nobody has, so that it opens the dashboard alone.

Such a key is found by who the person is, gets the roles that the provider named at each sign-in, and ends
soon unless they sign in again. All else is as for any key: what it may do, what is written of it, how it is revoked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.keys.service import living_project
from api.locks import lock_name
from models.api_key import ApiKey, create_key
from models.audit import record
from models.base import utc_now
from models.errors import Forbidden
from models.scope import Scope


class AccessRevoked(Forbidden):
    """Your access was revoked. Ask whoever runs this service."""

    code = "access_revoked"


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody for whom a provider vouches."""

    #: Issuer and subject: the same person for ever, and nobody else.
    identity: str
    #: What other people know them by.
    name: str
    full_name: str | None
    scopes: frozenset[Scope]


def enter(session: Session, person: Person, *, project: str, seconds: int) -> ApiKey:
    """Give the person's key, with the roles of today, for so many seconds.

    Raises:
        AccessRevoked: the key was revoked, which shuts its person out for good.
        ProjectArchived: the project of such keys has ended.
        ProjectNotFound: no project has this id.
        AmbiguousProject: several projects have this name.
    """
    lock_name(session, "identity", person.identity)
    key = _find(session, person.identity)
    if key is None:
        home = living_project(session, project)
        key, _ = create_key(session, home, person.name, person.scopes)
        key.identity = person.identity
    if key.revoked_at is not None or key.project.archived_at is not None:
        raise AccessRevoked
    key.name, key.user_name = person.name, person.full_name
    key.scopes = sorted(person.scopes)
    key.last_used_at = utc_now()
    key.expires_at = utc_now() + timedelta(seconds=seconds)
    _record(session, "person.signed_in", key)
    return key


def shut_out(session: Session, identity: str) -> None:
    """End what a person has open who has no role any more. They may have one again some day."""
    lock_name(session, "identity", identity)
    key = _find(session, identity)
    if key is None or key.why_dead is not None:
        return
    key.expires_at = utc_now()
    key.scopes = []
    _record(session, "person.shut_out", key)


def _find(session: Session, identity: str) -> ApiKey | None:
    return session.scalar(select(ApiKey).where(ApiKey.identity == identity))


def _record(session: Session, action: str, key: ApiKey) -> None:
    record(
        session,
        actor=key,
        action=action,
        subject=("key", key.id),
        project_id=key.project_id,
        details={"name": key.name, "scopes": list(key.scopes)},
    )
