"""Making, rotating and revoking API keys. The service never ends up without a key that could make another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from api.keys.schemas import CreateKey
from api.locks import lock_name
from models.api_key import ApiKey, Project, create_key
from models.audit import DATABASE, Actor, record
from models.base import utc_now
from models.errors import Conflict, DomainError, NotFound
from models.scope import Scope

FIRST_PROJECT = "default"
NEVER = datetime.max.replace(tzinfo=UTC)


class KeyNotFound(NotFound):
    """No such API key."""

    code = "key_not_found"


class ProjectNotFound(NotFound):
    """No such project."""

    code = "project_not_found"


class AmbiguousProject(DomainError):
    """Several projects have this name. Give the project's id."""

    code = "ambiguous_project"


class ProjectArchived(Conflict):
    """The project is archived; a key of it would open nothing."""

    code = "project_archived"


class KeyIsDead(Conflict):
    """The key opens nothing any more, so there is nothing to replace. Make a new one."""

    code = "key_is_dead"


class KeyHasNoSecret(Conflict):
    """This key is a person's who signs in elsewhere; there is no secret to replace."""

    code = "key_has_no_secret"


class LastOperatorKey(Conflict):
    """This is the last operator key; without it nobody could make another."""

    code = "last_operator_key"


def make_key(session: Session, by: ApiKey, asked: CreateKey) -> tuple[ApiKey, str]:
    """Make a key for the project that was named, or for the caller's own.

    Raises:
        ProjectNotFound: an id was given that no project has.
        AmbiguousProject: several projects have the name.
        ProjectArchived: the project has ended.
    """
    project = living_project(session, asked.project or by.project_id)
    lifetime = asked.expires_in_seconds
    key, token = create_key(
        session,
        project,
        asked.name,
        frozenset(asked.scopes),
        user_name=asked.user,
        expires_at=None if lifetime is None else utc_now() + timedelta(seconds=lifetime),
    )
    _record(session, by, "key.created", key)
    return key, token


def make_operator_key(session: Session, name: str, project: str = FIRST_PROJECT) -> str:
    """Make a key with every scope; give its secret.

    No key is asked for one: this is for whoever holds the database itself, before there is any key or
    after all were lost.

    Raises:
        ProjectNotFound: an id was given that no project has.
        AmbiguousProject: several projects have the name.
        ProjectArchived: the project has ended.
    """
    key, token = create_key(session, living_project(session, project), name, frozenset(Scope))
    _record(session, DATABASE, "key.created", key)
    return token


def list_keys(
    session: Session,
    *,
    after: str | None,
    limit: int,
    project_id: str | None = None,
    scope: Scope | None = None,
    with_revoked: bool = True,
    is_ascending: bool = False,
) -> tuple[Sequence[ApiKey], bool]:
    """Give one page of keys, newest first, and whether more follow.

    Raises:
        KeyNotFound: the last key of the page before is unknown.
    """
    query = select(ApiKey)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    if scope is not None:
        query = query.where(ApiKey.scopes.contains([scope.value]))
    if not with_revoked:
        query = query.where(ApiKey.revoked_at.is_(None))
    place = tuple_(ApiKey.created_at, ApiKey.id)
    if after is not None:
        last = get_key(session, after)
        here = tuple_(last.created_at, last.id)
        query = query.where(place > here if is_ascending else place < here)
    order = (ApiKey.created_at, ApiKey.id)
    found = session.scalars(
        query.order_by(*(order if is_ascending else (column.desc() for column in order))).limit(
            limit + 1
        )
    ).all()
    return found[:limit], len(found) > limit


def get_key(
    session: Session, key_id: str, *, project_id: str | None = None, scope: Scope | None = None
) -> ApiKey:
    """Give a key, of a project and with a scope if they are named.

    Raises:
        KeyNotFound: there is no such key.
    """
    key = session.get(ApiKey, key_id)
    is_meant = (
        key is not None
        and project_id in (None, key.project_id)
        and (scope is None or scope in key.scopes)
    )
    if key is None or not is_meant:
        raise KeyNotFound(f"No API key {key_id[:64]!r}.", param="key_id")
    return key


def rotate_key(
    session: Session, key_id: str, *, grace_seconds: int, by: ApiKey
) -> tuple[ApiKey, str]:
    """Make a key that may do what this one may; this one ends with the grace period.

    Raises:
        KeyNotFound: there is no such key.
        KeyHasNoSecret: it belongs to a person who signs in elsewhere.
        KeyIsDead: it was revoked, has expired, or its project is archived.
    """
    lock_name(session, "keys")
    old = get_key(session, key_id)
    if old.identity is not None:
        raise KeyHasNoSecret(param="key_id")
    if (reason := old.why_dead) is not None:
        raise KeyIsDead(f"{reason} Make a new one.", param="key_id")
    new, token = create_key(
        session,
        old.project,
        old.name,
        frozenset(Scope(scope) for scope in old.scopes),
        user_name=old.user_name,
        expires_at=old.expires_at,
    )
    now = utc_now()
    if grace_seconds == 0:
        old.revoked_at = now
    else:
        old.expires_at = min(old.expires_at or NEVER, now + timedelta(seconds=grace_seconds))
    _record(session, by, "key.rotated", old)
    _record(session, by, "key.created", new)
    return new, token


def revoke_key(session: Session, key_id: str, *, by: ApiKey) -> ApiKey:
    """Make a key worthless at once; a second time changes nothing.

    Raises:
        KeyNotFound: there is no such key.
        LastOperatorKey: no other operator key would be left.
    """
    lock_name(session, "keys")
    key = get_key(session, key_id)
    if key.revoked_at is not None:
        return key
    _refuse_last_operators(session, lambda other: other.id == key.id)
    key.revoked_at = utc_now()
    _record(session, by, "key.revoked", key)
    return key


def refuse_last_operator_keys(session: Session, project: Project) -> None:
    """Let a project's keys end only while others may run the service.

    Raises:
        LastOperatorKey: no other project has an operator key.
    """
    lock_name(session, "keys")
    _refuse_last_operators(session, lambda key: key.project_id == project.id)


def _refuse_last_operators(session: Session, is_lost: Callable[[ApiKey], bool]) -> None:
    found = session.scalars(
        select(ApiKey).where(
            ApiKey.revoked_at.is_(None), ApiKey.scopes.contains([Scope.OPERATOR.value])
        )
    )
    living = [key for key in found if key.why_dead is None]
    lost = [_end(key) for key in living if is_lost(key)]
    left = [_end(key) for key in living if not is_lost(key)]
    # A key that ends sooner, such as one that was rotated, would only put off the day without any.
    if lost and max(left, default=datetime.min.replace(tzinfo=UTC)) < max(lost):
        raise LastOperatorKey(param="key_id")


def _end(key: ApiKey) -> datetime:
    return key.expires_at or NEVER


def _record(session: Session, actor: ApiKey | Actor, action: str, key: ApiKey) -> None:
    record(
        session,
        actor=actor,
        action=action,
        subject=("key", key.id),
        project_id=key.project.id,
        details={"name": key.name, "scopes": list(key.scopes)},
    )


def living_project(session: Session, name_or_id: str) -> Project:
    """Give the project with this id, or with this name, made where there is none.

    Raises:
        ProjectNotFound: an id was given that no project has.
        AmbiguousProject: several projects have the name.
        ProjectArchived: the project has ended.
    """
    project = _find_project(session, name_or_id)
    if project.archived_at is not None:
        raise ProjectArchived(param="project")
    return project


def _find_project(session: Session, name_or_id: str) -> Project:
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
