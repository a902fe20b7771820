"""What routes are given: a session, the caller, storage, settings.

One transaction per request: it commits before the response is sent, and only then is anything done that
cannot be taken back (`after_commit`): a doorbell rung earlier would call a worker to a row not there yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from api.answer_headers import add_headers
from api.queue import Doorbell, ring
from api.rate_limits import RateLimiter, RateLimitExceeded
from api.request_log import note_key
from models import tracing
from models.api_key import ApiKey, Project, find_key, note_use
from models.errors import Forbidden, Unauthorized
from models.project import Quotas
from models.scope import STAFF, Scope
from models.session import SessionFactory
from models.settings import Settings
from models.storage import Storage

log = structlog.get_logger(__name__)

_QUEUED = "queued_job_ids"
_AFTERWARDS = "after_commit"
#: Where a session carries the service's limits to the services that check them.
QUOTAS = "quotas"
MAX_TOKEN_CHARACTERS = 512


class OtherOrganization(Unauthorized):
    """The header openai-organization names another organization than this API key's. Leave it out."""

    code = "mismatched_organization"


class OnlyLooks(Forbidden):
    """This API key has the scope 'viewer' alone, which sees everything and changes nothing."""

    code = "viewer_only"


class OtherProject(Unauthorized):
    """The header openai-project names another project than this API key's. Leave it out."""

    code = "mismatched_project"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent the request, by its API key."""

    key: ApiKey

    @property
    def project(self) -> Project:
        """The tenant that the key belongs to."""
        return self.key.project

    @property
    def scopes(self) -> frozenset[Scope]:
        """What the key may do; an operator may do all that staff may."""
        scopes = frozenset(Scope(scope) for scope in self.key.scopes)
        return scopes | STAFF if Scope.OPERATOR in scopes else scopes

    @property
    def only_looks(self) -> bool:
        """Whether the caller may see and not change anything."""
        return self.scopes == {Scope.VIEWER}

    @property
    def is_staff(self) -> bool:
        """Whether the caller works for whoever runs the service."""
        return bool(STAFF & self.scopes)

    @property
    def is_operator(self) -> bool:
        """Whether the caller runs the service: tenants, their keys and their limits."""
        return Scope.OPERATOR in self.scopes

    @property
    def is_reviewer(self) -> bool:
        """Whether the caller may decide on held models."""
        return Scope.REVIEWER in self.scopes

    @property
    def is_provider(self) -> bool:
        """Whether the caller may change bases and what was aligned on them."""
        return Scope.PROVIDER in self.scopes

    @property
    def visible_project_id(self) -> str | None:
        """The one project whose jobs and models the caller may see; None: every project's."""
        return None if self.is_staff else self.project.id


def enqueue(session: Session, job_id: str) -> None:
    """Ring the doorbell for a job once this session's transaction is committed."""
    session.info.setdefault(_QUEUED, []).append(job_id)


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Do something once this session's transaction is committed. A failure is logged, not raised."""
    session.info.setdefault(_AFTERWARDS, []).append(action)


@contextmanager
def transaction(
    sessions: SessionFactory, doorbell: Doorbell, quotas: Quotas | None = None
) -> Iterator[Session]:
    """Open a session, commit it at the end, then do what waits for the commit.

    `quotas` are the limits of projects that have none of their own.
    """
    with sessions() as session:
        session.info[QUOTAS] = quotas or Quotas()
        yield session
        session.commit()
        job_ids = session.info.pop(_QUEUED, [])
        actions = session.info.pop(_AFTERWARDS, [])
    if job_ids:
        with tracing.span("enqueue", {"titer.job.ids": ",".join(job_ids)}):
            # The one line that has both the request's id and the job's.
            log.info("doorbell_rung", job_ids=job_ids, heard=ring(sessions, doorbell, job_ids))
    for action in actions:
        try:
            action()
        except Exception:
            log.exception("after_commit_failed")


def app_transaction(app: FastAPI) -> AbstractContextManager[Session]:
    """Open a transaction apart from the request's session, as routes that stream must."""
    return transaction(app.state.sessions, app.state.doorbell, app.state.settings.quotas)


def get_session(request: Request) -> Iterator[Session]:
    """Give the request's session."""
    with app_transaction(request.app) as session:
        yield session


def get_caller(
    request: Request,
    credentials: Annotated[
        HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))
    ],
) -> Caller:
    """Tell who calls, in a short session of its own, so that an upload holds no connection.

    Raises:
        Unauthorized: no key, an unknown or a dead one.
        OtherOrganization: a header names another organization.
        OtherProject: a header names another project.
        Forbidden: the key has no scope at all, or may only look and this is more.
        RateLimitExceeded: the key or its project has sent too many requests.
    """
    if credentials is None or not 0 < len(credentials.credentials) <= MAX_TOKEN_CHARACTERS:
        raise Unauthorized
    with request.app.state.sessions() as session:
        caller = Caller(find_key(session, credentials.credentials))
        note_use(session, caller.key)
        session.commit()
    note_key(request, caller.key.id)
    add_headers(request, {"openai-organization": caller.project.organization_id})
    _count(request, caller)
    _check_headers(request, caller.project)
    if not caller.scopes:
        raise Forbidden
    check_may_change(request, caller)
    return caller


def check_may_change(request: Request, caller: Caller) -> None:
    """Refuse every method but reading to those who may only look.

    Raises:
        OnlyLooks: this is more than looking.
    """
    if caller.only_looks and request.method not in ("GET", "HEAD"):
        raise OnlyLooks


def _count(request: Request, caller: Caller) -> None:
    limiter: RateLimiter = request.app.state.rate_limiter
    allowance = limiter.take(caller.key.id, caller.project.id)
    if allowance is None:
        return
    add_headers(request, allowance.headers())
    if allowance.wait_milliseconds > 0:
        raise RateLimitExceeded(allowance)


def _check_headers(request: Request, project: Project) -> None:
    if request.headers.get("openai-organization", "") not in ("", project.organization_id):
        raise OtherOrganization
    if request.headers.get("openai-project", "") not in ("", project.id):
        raise OtherProject


def _needs(*any_of: Scope) -> Callable[[Caller], Caller]:
    def check(caller: CallerDep) -> Caller:
        if caller.scopes.isdisjoint(any_of):
            wanted = " or ".join(sorted(repr(scope.value) for scope in any_of))
            raise Forbidden(f"This API key does not have the scope {wanted}.")
        return caller

    return check


def get_storage(request: Request) -> Storage:
    """Give the object store."""
    storage: Storage = request.app.state.storage
    return storage


def get_settings(request: Request) -> Settings:
    """Give the settings that the app was made with."""
    settings: Settings = request.app.state.settings
    return settings


SessionDep = Annotated[Session, Depends(get_session, scope="function")]
CallerDep = Annotated[Caller, Depends(get_caller)]
CustomerDep = Annotated[Caller, Depends(_needs(Scope.CUSTOMER))]
require_operator = _needs(Scope.OPERATOR)
OperatorDep = Annotated[Caller, Depends(require_operator)]
require_provider = _needs(Scope.PROVIDER)
ProviderDep = Annotated[Caller, Depends(require_provider)]
require_reviewer = _needs(Scope.REVIEWER)
ReviewerDep = Annotated[Caller, Depends(require_reviewer)]
require_staff = _needs(*STAFF)
StaffDep = Annotated[Caller, Depends(require_staff)]
StorageDep = Annotated[Storage, Depends(get_storage)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
