"""Webhook endpoints of a project, or of staff for all projects: made, changed, tried out, and what was delivered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, and_, func, select, tuple_
from sqlalchemy.orm import Session

from api.locks import lock_name
from api.webhooks.delivery import valid_secrets
from api.webhooks.schemas import CreateEndpoint, UpdateEndpoint
from api.webhooks.sender import Message, NotDelivered, Sender
from api.webhooks.signing import SecretBox, SecretUnreadable, hint, new_secret
from api.webhooks.target import check_url
from models.base import new_id, utc_now
from models.errors import Conflict, DomainError, Forbidden, NotFound
from models.webhook import (
    MAX_ATTEMPTS,
    DeliveryStatus,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEventType,
    new_event_id,
)

MAX_ENDPOINTS = 10
OLD_SECRET_LIVES = timedelta(hours=24)
BY_OWNER = "It was switched off by its owner."

Row = TypeVar("Row", WebhookEndpoint, WebhookDelivery)


class EndpointNotFound(NotFound):
    """No such webhook endpoint in this project."""

    code = "webhook_endpoint_not_found"


class DeliveryNotFound(NotFound):
    """No such delivery to this endpoint."""

    code = "webhook_delivery_not_found"


class TooManyEndpoints(Conflict):
    """The project has as many webhook endpoints as it may have. Delete one first."""

    code = "too_many_webhook_endpoints"


class EndpointDisabled(Conflict):
    """The endpoint is disabled. Enable it first."""

    code = "webhook_endpoint_disabled"


class EndpointUnreachable(DomainError):
    """The endpoint gave no answer."""

    code = "webhook_endpoint_unreachable"


class TestUnderWay(DomainError):
    """A test of this project has not been answered yet. Wait for it."""

    __test__ = False
    status_code = 429
    type = "rate_limit_exceeded"
    code = "webhook_test_under_way"


class SecretLost(Conflict):
    """The endpoint's secret cannot be read any more. Rotate it."""

    code = "webhook_secret_unreadable"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose endpoints are meant: a project's, and only for staff those that are told of every project."""

    project_id: str
    is_staff: bool

    def may_see(self) -> ColumnElement[bool]:
        """Give the condition that selects the endpoints."""
        own = WebhookEndpoint.project_id == self.project_id
        return own if self.is_staff else and_(own, ~WebhookEndpoint.all_projects)


@dataclass(frozen=True, slots=True)
class Sample:
    """A message to try an endpoint out with."""

    endpoint_id: str
    project_id: str
    url: str
    secrets: tuple[str, ...]
    message: Message


#: Projects that wait for a receiver's answer in this process: the api is no tool to flood anybody with.
_testing: set[str] = set()


def create_endpoint(
    session: Session,
    box: SecretBox,
    owner: Owner,
    asked: CreateEndpoint,
    *,
    allow_private: bool,
) -> tuple[WebhookEndpoint, str]:
    """Make an endpoint; the second value is its secret.

    Raises:
        InvalidWebhookUrl: the URL cannot be a webhook's.
        TooManyEndpoints: the project has its fill.
        Forbidden: a customer wants to be told of every project.
    """
    if asked.all_projects and not owner.is_staff:
        raise Forbidden("Only staff are told of the events of all projects.")
    check_url(asked.url, allow_private=allow_private)
    lock_name(session, "webhook_endpoints", owner.project_id)
    count = session.scalar(
        select(func.count())
        .select_from(WebhookEndpoint)
        .where(WebhookEndpoint.project_id == owner.project_id)
    )
    if (count or 0) >= MAX_ENDPOINTS:
        raise TooManyEndpoints
    secret = new_secret()
    endpoint = WebhookEndpoint(
        project_id=owner.project_id,
        all_projects=asked.all_projects,
        name=asked.name,
        url=asked.url,
        event_types=_sorted(asked.event_types),
        sealed_secret=box.seal(secret),
        secret_hint=hint(secret),
    )
    session.add(endpoint)
    session.flush()
    return endpoint, secret


def list_endpoints(
    session: Session, owner: Owner, *, after: str | None, limit: int
) -> tuple[Sequence[WebhookEndpoint], bool]:
    """Give one page of a project's endpoints, newest first, and whether more follow."""
    last = None if after is None else get_endpoint(session, owner, after)
    return _page(session, WebhookEndpoint, owner.may_see(), last, limit)


def get_endpoint(session: Session, owner: Owner, endpoint_id: str) -> WebhookEndpoint:
    """Give an endpoint.

    Raises:
        EndpointNotFound: it is absent, or another project's.
    """
    return _get(session, owner, endpoint_id)


def update_endpoint(
    session: Session,
    owner: Owner,
    endpoint_id: str,
    asked: UpdateEndpoint,
    *,
    allow_private: bool,
) -> WebhookEndpoint:
    """Change what was named.

    Raises:
        EndpointNotFound: it is absent, or another project's.
        InvalidWebhookUrl: the URL cannot be a webhook's.
    """
    endpoint = _get(session, owner, endpoint_id, is_locked=True)
    if asked.url is not None:
        check_url(asked.url, allow_private=allow_private)
    changes = asked.model_dump(exclude_none=True, exclude={"enabled"})
    if asked.event_types is not None:
        changes["event_types"] = _sorted(asked.event_types)
    if asked.enabled is not None and asked.enabled != endpoint.is_enabled:
        changes["disabled_at"] = None if asked.enabled else utc_now()
        changes["disabled_reason"] = None if asked.enabled else BY_OWNER
        changes["given_up_in_a_row"] = 0
    changed = {name: value for name, value in changes.items() if getattr(endpoint, name) != value}
    for name, value in changed.items():
        setattr(endpoint, name, value)
    if changed:
        endpoint.updated_at = utc_now()
    return endpoint


def delete_endpoint(session: Session, owner: Owner, endpoint_id: str) -> None:
    """Forget an endpoint, with everything that was or was to be delivered to it.

    Raises:
        EndpointNotFound: it is absent, or another project's.
    """
    session.delete(_get(session, owner, endpoint_id, is_locked=True))


def rotate_secret(
    session: Session, box: SecretBox, owner: Owner, endpoint_id: str, *, keep_old: bool
) -> tuple[WebhookEndpoint, str]:
    """Give an endpoint a new secret; the old one may stay valid beside it for 24 hours.

    Raises:
        EndpointNotFound: it is absent, or another project's.
    """
    endpoint = _get(session, owner, endpoint_id, is_locked=True)
    now, secret = utc_now(), new_secret()
    endpoint.old_sealed_secret = endpoint.sealed_secret if keep_old else None
    endpoint.old_secret_expires_at = now + OLD_SECRET_LIVES if keep_old else None
    endpoint.sealed_secret, endpoint.secret_hint = box.seal(secret), hint(secret)
    endpoint.updated_at = now
    return endpoint, secret


def prepare_test(
    session: Session, box: SecretBox, owner: Owner, endpoint_id: str, type: WebhookEventType
) -> Sample:
    """Make a sample of an event, ready to be sent once the session is closed.

    Raises:
        EndpointNotFound: it is absent, or another project's.
        SecretLost: it cannot be signed for.
    """
    endpoint, now = _get(session, owner, endpoint_id), utc_now()
    try:
        secrets = tuple(box.open(sealed) for sealed in valid_secrets(endpoint, now))
    except SecretUnreadable:
        raise SecretLost from None
    # Of an object that there is not: receivers who look it up should be told so.
    data = {"id": new_id("sample"), "test": True}
    message = Message(new_event_id(), type, now, data)
    return Sample(endpoint.id, owner.project_id, endpoint.url, secrets, message)


async def send_test(sender: Sender, sample: Sample) -> int:
    """Send a sample; give the status that was answered.

    Raises:
        TestUnderWay: another of the project's samples has no answer yet.
        EndpointUnreachable: no answer came; the sentence says why.
    """
    if sample.project_id in _testing:
        raise TestUnderWay
    _testing.add(sample.project_id)
    try:
        return await sender.send(sample.url, sample.message, sample.secrets)
    except NotDelivered as fault:
        raise EndpointUnreachable(str(fault), param="url") from None
    finally:
        _testing.discard(sample.project_id)


def list_deliveries(
    session: Session, owner: Owner, endpoint_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[WebhookDelivery], bool]:
    """Give one page of what was and is to be delivered, newest first, and whether more follow.

    Raises:
        EndpointNotFound: it is absent, or another project's.
        DeliveryNotFound: `after` names no delivery of it.
    """
    endpoint = _get(session, owner, endpoint_id)
    last = None if after is None else _get_delivery(session, endpoint, after)
    return _page(session, WebhookDelivery, WebhookDelivery.endpoint_id == endpoint.id, last, limit)


def redeliver(
    session: Session, owner: Owner, endpoint_id: str, delivery_id: str
) -> WebhookDelivery:
    """Make a delivery due at once, with a fresh round of attempts. One that is just being sent is left alone.

    Raises:
        EndpointNotFound: it is absent, or another project's.
        DeliveryNotFound: the endpoint has no such delivery.
        EndpointDisabled: nothing would be sent.
    """
    endpoint = _get(session, owner, endpoint_id)
    if not endpoint.is_enabled:
        raise EndpointDisabled
    delivery = _get_delivery(session, endpoint, delivery_id, is_locked=True)
    now = utc_now()
    if delivery.leased_until is None or delivery.leased_until < now:
        delivery.status, delivery.next_attempt_at = DeliveryStatus.PENDING, now
        delivery.attempts_left = MAX_ATTEMPTS
    return delivery


def _get(
    session: Session, owner: Owner, endpoint_id: str, *, is_locked: bool = False
) -> WebhookEndpoint:
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, owner.may_see())
    endpoint = session.scalar(query.with_for_update() if is_locked else query)
    if endpoint is None:
        raise EndpointNotFound(param="webhook_endpoint_id")
    return endpoint


def _get_delivery(
    session: Session, endpoint: WebhookEndpoint, delivery_id: str, *, is_locked: bool = False
) -> WebhookDelivery:
    query = select(WebhookDelivery).where(
        WebhookDelivery.id == delivery_id, WebhookDelivery.endpoint_id == endpoint.id
    )
    locked = query.with_for_update(of=WebhookDelivery)
    delivery = session.scalar(locked if is_locked else query)
    if delivery is None:
        raise DeliveryNotFound(param="delivery_id")
    return delivery


def _page(
    session: Session,
    table: type[Row],
    condition: ColumnElement[bool],
    last: Row | None,
    limit: int,
) -> tuple[Sequence[Row], bool]:
    query = select(table).where(condition)
    if last is not None:
        query = query.where(tuple_(table.created_at, table.id) < tuple_(last.created_at, last.id))
    found = session.scalars(
        query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)
    ).all()
    return found[:limit], len(found) > limit


def _sorted(types: Sequence[WebhookEventType]) -> list[str]:
    return sorted({type.value for type in types})
