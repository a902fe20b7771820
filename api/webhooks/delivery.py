"""The deliverer: takes what is due from the outbox, sends it, and notes what came of it.

Any number of deliverers may run. An attempt is claimed in a short transaction (`FOR UPDATE SKIP LOCKED`),
sent without any connection held, and recorded in another; so each attempt is made by one of them. One that
dies between the two leaves a lease that runs out, and the message is sent again under the same id: receivers
are told at least once. It starts beside the sweeper (`api.sweeper`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from secrets import SystemRandom
from typing import ParamSpec, TypeVar

import structlog
from sqlalchemy import delete, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased

from api.webhooks.sender import TIMEOUT_SECONDS, Message, NotDelivered, Sender
from api.webhooks.signing import SecretBox, SecretUnreadable
from models.base import utc_now
from models.session import SessionFactory, make_engine, session_factory
from models.settings import Settings
from models.webhook import (
    MAX_ATTEMPTS,
    DeliveryStatus,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
)

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: 10 s, 40 s, 160 s, ... at most 4 hours: the last of ten attempts is about 16 hours after the first.
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 4 * 3600.0
PAUSE_FACTOR = 4.0
#: Pauses vary by this share, so that what failed together does not come back together.
JITTER = 0.2
#: An endpoint that so many deliveries in a row were given up for is sent nothing more.
MAX_GIVEN_UP = 5
GONE = 410

LEASE = timedelta(seconds=4 * TIMEOUT_SECONDS)
POLL_SECONDS = 1.0
#: While messages are under way, for the next one to the same receiver.
BUSY_POLL_SECONDS = 0.1
#: How long a stop waits for answers. What is left is sent again when its lease has run out.
FINISH_SECONDS = 5.0
MAX_AT_ONCE = 64
MAX_BACKOFF_SECONDS = 60.0
KEPT = timedelta(days=30)
FORGET_EVERY = timedelta(hours=1)
#: Names are looked up in threads, and a customer's name server may take its time.
LOOKUP_THREADS = 32


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt that is this deliverer's to make."""

    delivery_id: str
    endpoint_id: str
    attempt: int
    #: How many attempts of its round came before it.
    earlier: int
    url: str
    sealed_secrets: tuple[str, ...]
    message: Message


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: the status that was answered, or why there was none."""

    status: int | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        """Whether the receiver took it."""
        return self.status is not None and 200 <= self.status < 300


def claim_due(session: Session, *, limit: int) -> list[Claim]:
    """Take what is due, the longest due first; nothing for endpoints that are just being sent to.

    So a receiver that is slow takes one place and not every one.

    Args:
        session: its transaction is to be committed before anything is sent.
        limit: how many at most.
    """
    now = utc_now()
    is_due = (
        WebhookDelivery.status == DeliveryStatus.PENDING,
        WebhookDelivery.next_attempt_at <= now,
        or_(WebhookDelivery.leased_until.is_(None), WebhookDelivery.leased_until < now),
    )
    leased = aliased(WebhookDelivery)
    is_sent_to = (
        select(leased.id)
        .where(
            leased.endpoint_id == WebhookDelivery.endpoint_id,
            leased.status == DeliveryStatus.PENDING,
            leased.leased_until >= now,
        )
        .exists()
    )
    first = (
        select(WebhookDelivery.id)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(*is_due, WebhookEndpoint.disabled_at.is_(None), ~is_sent_to)
        .ext(distinct_on(WebhookDelivery.endpoint_id))
        .order_by(WebhookDelivery.endpoint_id, WebhookDelivery.next_attempt_at)
        .subquery()
    )
    # The conditions stand here again: another deliverer may have been faster between the two.
    due = session.execute(
        select(WebhookDelivery, WebhookEndpoint)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id.in_(select(first.c.id)), *is_due)
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(limit)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    ).all()
    return [_claim(delivery, endpoint, now) for delivery, endpoint in due]


def _claim(delivery: WebhookDelivery, endpoint: WebhookEndpoint, now: datetime) -> Claim:
    delivery.attempts += 1
    earlier = MAX_ATTEMPTS - delivery.attempts_left
    delivery.attempts_left -= 1
    delivery.last_attempt_at = now
    delivery.leased_until = now + LEASE
    event = delivery.event
    return Claim(
        delivery_id=delivery.id,
        endpoint_id=endpoint.id,
        attempt=delivery.attempts,
        earlier=earlier,
        url=endpoint.url,
        sealed_secrets=valid_secrets(endpoint, now),
        message=Message(event.id, event.type, event.created_at, event.data),
    )


def valid_secrets(endpoint: WebhookEndpoint, now: datetime) -> tuple[str, ...]:
    """Give the sealed secrets that receivers may be checking with, the newest first."""
    old, until = endpoint.old_sealed_secret, endpoint.old_secret_expires_at
    if old is not None and until is not None and now < until:
        return endpoint.sealed_secret, old
    return (endpoint.sealed_secret,)


def record(session: Session, claim: Claim, outcome: Outcome) -> None:
    """Note what came of an attempt, and when the next one is due, if any."""
    # The endpoint first, as whoever deletes it does; so nobody waits in a circle.
    endpoint = session.get(WebhookEndpoint, claim.endpoint_id, with_for_update={"key_share": True})
    delivery = session.scalar(
        select(WebhookDelivery)
        .where(
            WebhookDelivery.id == claim.delivery_id,
            WebhookDelivery.attempts == claim.attempt,
            WebhookDelivery.status == DeliveryStatus.PENDING,
        )
        .with_for_update(of=WebhookDelivery)
    )
    # It was deleted, or the lease ran out and another deliverer has the next attempt.
    if endpoint is None or delivery is None:
        return
    delivery.leased_until = None
    delivery.response_status, delivery.error = outcome.status, outcome.error
    if outcome.is_success:
        delivery.status, delivery.next_attempt_at = DeliveryStatus.DELIVERED, None
        endpoint.given_up_in_a_row = 0
    elif outcome.status == GONE or delivery.attempts_left <= 0:
        delivery.status, delivery.next_attempt_at = DeliveryStatus.FAILED, None
        endpoint.given_up_in_a_row += 1
        _disable_if_hopeless(endpoint, outcome)
    else:
        delivery.next_attempt_at = utc_now() + pause_after(claim.earlier)


def _disable_if_hopeless(endpoint: WebhookEndpoint, outcome: Outcome) -> None:
    if outcome.status == GONE:
        reason = "The receiver answered 410 Gone."
    elif endpoint.given_up_in_a_row >= MAX_GIVEN_UP:
        reason = f"{endpoint.given_up_in_a_row} deliveries in a row were given up."
    else:
        return
    endpoint.disabled_at, endpoint.disabled_reason = utc_now(), reason
    log.warning("webhook_endpoint_disabled", endpoint_id=endpoint.id)


def pause_after(earlier: int) -> timedelta:
    """Give the time until the next attempt, after one that failed as so many before it had."""
    seconds = min(FIRST_PAUSE_SECONDS * PAUSE_FACTOR**earlier, LONGEST_PAUSE_SECONDS)
    return timedelta(seconds=seconds * SystemRandom().uniform(1 - JITTER, 1 + JITTER))


async def attempt(sender: Sender, box: SecretBox, claim: Claim) -> Outcome:
    """Make one attempt."""
    try:
        secrets = [box.open(sealed) for sealed in claim.sealed_secrets]
        return Outcome(status=await sender.send(claim.url, claim.message, secrets))
    except SecretUnreadable:
        return Outcome(error="secret_unreadable")
    except NotDelivered as fault:
        return Outcome(error=fault.reason)
    except Exception:
        # Unrecorded it would be tried for ever.
        log.exception("webhook_attempt_failed", delivery_id=claim.delivery_id)
        return Outcome(error="internal_error")


def forget_old(session: Session) -> int:
    """Delete what ended long ago, and secrets that no longer sign; give how many deliveries that were."""
    now = utc_now()
    before = now - KEPT
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.old_secret_expires_at < now)
        .values(old_sealed_secret=None, old_secret_expires_at=None)
    )
    forgotten = session.execute(
        delete(WebhookDelivery).where(
            WebhookDelivery.created_at < before, WebhookDelivery.status != DeliveryStatus.PENDING
        )
    )
    session.execute(
        delete(WebhookEvent).where(
            WebhookEvent.created_at < before,
            ~select(WebhookDelivery.id).where(WebhookDelivery.event_id == WebhookEvent.id).exists(),
        )
    )
    return int(forgotten.rowcount)  # type: ignore[attr-defined]


class Deliverer:
    """Sends what is due, many messages at once, one at a time to each endpoint."""

    def __init__(self, sessions: SessionFactory, sender: Sender, box: SecretBox) -> None:
        self._sessions = sessions
        self._sender = sender
        self._box = box
        self._sending: set[asyncio.Task[None]] = set()
        # Apart from the threads for names: a slow name server must not keep results from being written.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="webhook-database")
        self._forget_at = utc_now()

    async def start_due(self) -> int:
        """Begin with what is due; give how many messages that are."""
        room = MAX_AT_ONCE - len(self._sending)
        if room <= 0:
            return 0
        if utc_now() >= self._forget_at:
            self._forget_at = utc_now() + FORGET_EVERY
            await self._in_thread(self._forget)
        claims = await self._in_thread(self._claim, room)
        for claim in claims:
            task = asyncio.create_task(self._deliver(claim))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return len(claims)

    @property
    def is_sending(self) -> bool:
        """Whether messages are under way."""
        return bool(self._sending)

    async def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Wait for the messages that are under way, but not for ever. Nothing can be started afterwards."""
        if self._sending:
            _, left = await asyncio.wait(self._sending, timeout=seconds)
            for task in left:
                task.cancel()
        self._threads.shutdown(wait=False)

    async def _deliver(self, claim: Claim) -> None:
        try:
            outcome = await attempt(self._sender, self._box, claim)
            await self._in_thread(self._record, claim, outcome)
        except SQLAlchemyError as error:
            # The lease runs out and the message is sent again: twice is better than never.
            log.warning("webhook_not_recorded", kind=type(error).__name__)
        except Exception:
            log.exception("webhook_not_recorded", delivery_id=claim.delivery_id)

    def _claim(self, limit: int) -> list[Claim]:
        with self._sessions.begin() as session:
            return claim_due(session, limit=limit)

    def _record(self, claim: Claim, outcome: Outcome) -> None:
        with self._sessions.begin() as session:
            record(session, claim, outcome)
        log.info(
            "webhook_sent",
            delivery_id=claim.delivery_id,
            attempt=claim.attempt,
            status=outcome.status,
            error=outcome.error,
        )

    def _forget(self) -> None:
        with self._sessions.begin() as session:
            forget_old(session)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(work, *args, **kwargs))


def run(settings: Settings, stop: threading.Event) -> None:
    """Deliver until told to stop; an outage is waited out. Without a key there is nothing to deliver."""
    if not settings.webhook_key:
        log.info("webhooks_not_configured")
        return
    engine = make_engine(settings.database_url, pool_size=2)
    log.info("deliverer_started")
    try:
        asyncio.run(_run(settings, session_factory(engine), stop))
    finally:
        engine.dispose()
    log.info("deliverer_stopped")


async def _run(settings: Settings, sessions: SessionFactory, stop: threading.Event) -> None:
    lookups = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="webhook-lookup")
    asyncio.get_running_loop().set_default_executor(lookups)
    pause = POLL_SECONDS
    async with Sender(allow_private=settings.webhook_allow_private) as sender:
        deliverer = Deliverer(sessions, sender, SecretBox.of(settings))
        while not await asyncio.to_thread(stop.wait, pause):
            try:
                await deliverer.start_due()
            except SQLAlchemyError as error:
                pause = min(max(pause, POLL_SECONDS) * 2, MAX_BACKOFF_SECONDS)
                log.warning("delivery_failed", kind=type(error).__name__, next_seconds=pause)
                continue
            except Exception:
                pause = min(max(pause, POLL_SECONDS) * 2, MAX_BACKOFF_SECONDS)
                log.exception("delivery_failed")
                continue
            pause = BUSY_POLL_SECONDS if deliverer.is_sending else POLL_SECONDS
        await deliverer.finish()
