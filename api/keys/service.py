"""Making and revoking API keys. The service never ends up without a key that could make another."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.keys.schemas import CreateKey
from api.locks import lock_name
from models.api_key import ApiKey, Project, Scope, create_key
from models.base import utc_now
from models.errors import Conflict, DomainError, NotFound

FIRST_PROJECT = "default"


class KeyNotFound(NotFound):
    """No such API key."""

    code = "key_not_found"


class ProjectNotFound(NotFound):
    """No such project."""

    code = "project_not_found"


class AmbiguousProject(DomainError):
    """Several projects have this name. Give the project's id."""

    code = "ambiguous_project"


class LastOperatorKey(Conflict):
    """This is the last operator key; without it nobody could make another."""

    code = "last_operator_key"


def make_key(session: Session, own: Project, asked: CreateKey) -> tuple[ApiKey, str]:
    """Make a key for the project that was named, or for the caller's own.

    Raises:
        ProjectNotFound: an id was given that no project has.
        AmbiguousProject: several projects have the name.
    """
    project = own if asked.project is None else _project(session, asked.project)
    # The caller's project comes from another session.
    return create_key(
        session, session.merge(project, load=True), asked.name, frozenset(asked.scopes)
    )


def make_operator_key(session: Session, name: str, project: str = FIRST_PROJECT) -> str:
    """Make a key with every scope; give its secret.

    No key is asked for one: this is for whoever holds the database itself, before there is any key or
    after all were lost.

    Raises:
        ProjectNotFound: an id was given that no project has.
        AmbiguousProject: several projects have the name.
    """
    _, token = create_key(session, _project(session, project), name, frozenset(Scope))
    return token


def list_keys(session: Session) -> Sequence[ApiKey]:
    """Give every key, newest first, revoked ones included."""
    return session.scalars(select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id)).all()


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Make a key worthless at once; a second time changes nothing.

    Raises:
        KeyNotFound: there is no such key.
        LastOperatorKey: no other operator key would be left.
    """
    lock_name(session, "keys")
    key = session.get(ApiKey, key_id)
    if key is None:
        raise KeyNotFound(f"No API key {key_id[:64]!r}.", param="key_id")
    if key.revoked_at is not None:
        return key
    others = select(ApiKey.id).where(
        ApiKey.id != key.id,
        ApiKey.revoked_at.is_(None),
        ApiKey.scopes.contains([Scope.OPERATOR.value]),
    )
    if Scope.OPERATOR in key.scopes and session.scalar(others.limit(1)) is None:
        raise LastOperatorKey(param="key_id")
    key.revoked_at = utc_now()
    return key


def _project(session: Session, name_or_id: str) -> Project:
    by_id = session.get(Project, name_or_id)
    if by_id is not None:
        return by_id
    if name_or_id.startswith("proj-"):
        raise ProjectNotFound(param="project")
    # Without the lock two requests at once would make two projects of one name.
    lock_name(session, "project", name_or_id)
    found = session.scalars(select(Project).where(Project.name == name_or_id).limit(2)).all()
    if len(found) > 1:
        raise AmbiguousProject(param="project")
    if found:
        return found[0]
    project = Project(name=name_or_id)
    session.add(project)
    session.flush()
    return project
