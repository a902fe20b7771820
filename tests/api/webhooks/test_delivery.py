"""From the outbox to a real receiver: retries, giving up, several deliverers, crashes, outages."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from itertools import pairwise

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from api.webhooks import delivery
from api.webhooks.delivery import (
    LONGEST_PAUSE_SECONDS,
    MAX_GIVEN_UP,
    Claim,
    Deliverer,
    Outcome,
    claim_due,
    forget_old,
    pause_after,
    record,
)
from api.webhooks.sender import Sender
from api.webhooks.signing import SecretBox, new_secret
from models.api_key import Project
from models.base import utc_now
from models.session import SessionFactory, make_engine, session_factory
from models.settings import Settings
from models.webhook import (
    MAX_ATTEMPTS,
    DeliveryStatus,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookEventType,
    publish,
)
from tests.api.webhooks.receiver import Receiver, receiving
from tests.models.factories import make_project
from tests.models.test_webhook import make_endpoint

# Deliveries are waited for.
pytestmark = pytest.mark.long

KEY = "k" * 32
BOX = SecretBox(KEY)
SECRET = new_secret()
TYPE = WebhookEventType.FINETUNE_SUCCEEDED


class Outbox:
    """A database of the test's own, and short ways to look into it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self.sessions: SessionFactory = session_factory(self.engine)
        with self.sessions.begin() as session:
            self.project: Project = make_project(session)

    def endpoint(self, url: str, **facts: object) -> str:
        with self.sessions.begin() as session:
            sealed = BOX.seal(SECRET)
            facts = {"url": url, "sealed_secret": sealed, **facts}
            return make_endpoint(session, self.project, TYPE, **facts).id

    def publish(self, count: int = 1) -> None:
        with self.sessions.begin() as session:
            for number in range(count):
                publish(session, self.project.id, TYPE, {"id": f"ftjob-{number}"})

    def deliveries(self) -> list[WebhookDelivery]:
        with self.sessions() as session:
            query = select(WebhookDelivery).order_by(WebhookDelivery.created_at)
            return list(session.scalars(query))

    def show(self, endpoint_id: str) -> WebhookEndpoint:
        with self.sessions() as session:
            return session.get_one(WebhookEndpoint, endpoint_id)

    def make_due(self) -> None:
        with self.sessions.begin() as session:
            for waiting in session.scalars(
                select(WebhookDelivery).where(WebhookDelivery.status == DeliveryStatus.PENDING)
            ):
                waiting.next_attempt_at = utc_now()

    def claim(self, limit: int = 10) -> list[Claim]:
        with self.sessions.begin() as session:
            return claim_due(session, limit=limit)

    def record(self, claim: Claim, outcome: Outcome) -> None:
        with self.sessions.begin() as session:
            record(session, claim, outcome)

    def deliver(self) -> int:
        """One round: everything that is due, once; give how many messages that were."""

        async def once() -> int:
            async with Sender(allow_private=True) as sender:
                deliverer = Deliverer(self.sessions, sender, BOX)
                started = await deliverer.start_due()
                await deliverer.finish()
                return started

        return asyncio.run(once())


@pytest.fixture
def outbox(database_url: str) -> Iterator[Outbox]:
    outbox = Outbox(database_url)
    yield outbox
    outbox.engine.dispose()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


class TestRounds:
    def test_an_event_arrives_once_and_is_done(self, outbox: Outbox, receiver: Receiver) -> None:
        outbox.endpoint(receiver.url)
        outbox.publish()
        assert outbox.deliver() == 1
        assert outbox.deliver() == 0
        (received,) = receiver.received
        event = received.unwrap(SECRET)
        (sent,) = outbox.deliveries()
        assert (event.id, event.data.id) == (sent.event_id, "ftjob-0")
        assert received.headers["webhook-id"] == sent.event_id
        assert (sent.status, sent.attempts, sent.response_status) == ("delivered", 1, 200)
        assert sent.leased_until is None
        assert sent.next_attempt_at is None

    def test_every_endpoint_gets_it_with_its_own_secret(self, outbox: Outbox) -> None:
        other = new_secret()
        with receiving() as one, receiving() as two:
            outbox.endpoint(one.url)
            outbox.endpoint(two.url, sealed_secret=BOX.seal(other))
            outbox.publish()
            assert outbox.deliver() == 2
        assert one.received[0].unwrap(SECRET).id == two.received[0].unwrap(other).id

    def test_a_failure_is_tried_again_later_under_the_same_id(
        self, outbox: Outbox, receiver: Receiver
    ) -> None:
        outbox.endpoint(receiver.url)
        outbox.publish()
        receiver.answer = 500
        outbox.deliver()
        (failed,) = outbox.deliveries()
        assert (failed.status, failed.attempts, failed.response_status) == ("pending", 1, 500)
        assert failed.next_attempt_at is not None
        assert timedelta(0) < failed.next_attempt_at - utc_now() < timedelta(seconds=13)
        assert outbox.deliver() == 0
        outbox.make_due()
        receiver.answer = 200
        assert outbox.deliver() == 1
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
        assert outbox.deliveries()[0].status == "delivered"

    def test_a_redirect_is_a_failure(self, outbox: Outbox, receiver: Receiver) -> None:
        receiver.answer = 302
        outbox.endpoint(receiver.url)
        outbox.publish()
        outbox.deliver()
        assert outbox.deliveries()[0].response_status == 302
        assert outbox.deliveries()[0].status == "pending"
        assert len(receiver.received) == 1

    @pytest.mark.parametrize(
        ("url", "error"),
        [
            ("http://127.0.0.1:1/", "connection_failed"),
            ("http://169.254.169.254/latest/meta-data", "address_refused"),
        ],
    )
    def test_why_there_was_no_answer_is_kept(self, outbox: Outbox, url: str, error: str) -> None:
        outbox.endpoint(url)
        outbox.publish()
        outbox.deliver()
        (failed,) = outbox.deliveries()
        assert (failed.error, failed.response_status, failed.status) == (error, None, "pending")

    def test_a_secret_that_cannot_be_read_ends_nothing_else(
        self, outbox: Outbox, receiver: Receiver
    ) -> None:
        lost = outbox.endpoint(receiver.url, sealed_secret=SecretBox("j" * 32).seal(SECRET))
        outbox.endpoint(receiver.url)
        outbox.publish()
        assert outbox.deliver() == 2
        by_endpoint = {d.endpoint_id == lost: d for d in outbox.deliveries()}
        assert by_endpoint[True].error == "secret_unreadable"
        assert by_endpoint[False].status == "delivered"

    def test_a_fault_of_ours_counts_as_an_attempt(
        self, outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(*_: object) -> int:
            raise RuntimeError("odd")

        monkeypatch.setattr(Sender, "send", broken)
        outbox.endpoint(receiver.url)
        outbox.publish()
        outbox.deliver()
        (failed,) = outbox.deliveries()
        assert (failed.error, failed.leased_until) == ("internal_error", None)

    def test_one_message_at_a_time_for_each_endpoint(
        self, outbox: Outbox, receiver: Receiver
    ) -> None:
        outbox.endpoint(receiver.url)
        outbox.publish(3)
        assert [outbox.deliver() for _ in range(4)] == [1, 1, 1, 0]
        assert len({r.headers["webhook-id"] for r in receiver.received}) == 3

    def test_a_receiver_that_hangs_keeps_nobody_else_waiting(
        self, outbox: Outbox, receiver: Receiver
    ) -> None:
        let_go = threading.Event()

        def hang(_: BaseHTTPRequestHandler) -> None:
            let_go.wait(10)

        with receiving(hang) as hanging:
            outbox.endpoint(hanging.url)
            outbox.endpoint(receiver.url)
            outbox.publish(2)

            async def rounds() -> None:
                async with Sender(allow_private=True) as sender:
                    deliverer = Deliverer(outbox.sessions, sender, BOX)
                    while len(receiver.received) < 2:
                        await deliverer.start_due()
                        await asyncio.sleep(0.01)
                    assert deliverer.is_sending
                    let_go.set()
                    await deliverer.finish()

            asyncio.run(rounds())
        assert len(hanging.received) == 1


class TestGivingUp:
    def test_after_the_last_attempt(self, outbox: Outbox) -> None:
        endpoint = outbox.endpoint("http://127.0.0.1:1/")
        outbox.publish()
        for number in range(MAX_ATTEMPTS):
            outbox.make_due()
            (claim,) = outbox.claim()
            assert (claim.attempt, claim.earlier) == (number + 1, number)
            outbox.record(claim, Outcome(status=503))
        (failed,) = outbox.deliveries()
        assert (failed.status, failed.attempts, failed.next_attempt_at) == (
            "failed",
            MAX_ATTEMPTS,
            None,
        )
        assert outbox.show(endpoint).given_up_in_a_row == 1
        assert outbox.show(endpoint).is_enabled

    def test_gone_disables_at_once(self, outbox: Outbox, receiver: Receiver) -> None:
        receiver.answer = 410
        endpoint = outbox.endpoint(receiver.url)
        outbox.publish(2)
        outbox.deliver()
        shown = outbox.show(endpoint)
        assert shown.disabled_reason == "The receiver answered 410 Gone."
        assert not shown.is_enabled
        assert outbox.deliver() == 0
        assert sorted(d.status for d in outbox.deliveries()) == ["failed", "pending"]
        outbox.publish()
        assert len(outbox.deliveries()) == 2, "nothing more is put out for it"

    def test_many_given_up_in_a_row_disable(self, outbox: Outbox) -> None:
        endpoint = outbox.endpoint("http://127.0.0.1:1/")
        outbox.publish(MAX_GIVEN_UP + 1)
        with outbox.sessions.begin() as session:
            for waiting in session.scalars(select(WebhookDelivery)):
                waiting.attempts_left = 1
        for _ in range(MAX_GIVEN_UP):
            assert outbox.show(endpoint).is_enabled
            outbox.deliver()
        assert outbox.show(endpoint).disabled_reason == "5 deliveries in a row were given up."
        assert outbox.deliver() == 0

    def test_one_that_arrives_begins_the_count_anew(
        self, outbox: Outbox, receiver: Receiver
    ) -> None:
        endpoint = outbox.endpoint(receiver.url, given_up_in_a_row=MAX_GIVEN_UP - 1)
        outbox.publish()
        outbox.deliver()
        assert outbox.show(endpoint).given_up_in_a_row == 0

    def test_pauses_grow_over_hours_vary_and_are_bounded(self) -> None:
        pauses = [pause_after(earlier).total_seconds() for earlier in range(MAX_ATTEMPTS)]
        assert all(a < b for a, b in pairwise(pauses[:6]))
        assert 8 <= pauses[0] <= 12
        assert max(pauses) <= LONGEST_PAUSE_SECONDS * 1.2
        assert 8 * 3600 < sum(pauses[:-1]) < 24 * 3600
        assert len({pause_after(0) for _ in range(10)}) > 1


class TestSeveralDeliverers:
    def test_never_make_the_same_attempt(self, outbox: Outbox) -> None:
        for _ in range(40):
            outbox.endpoint("https://example.com/")
        outbox.publish(2)
        at_once = 6
        barrier = threading.Barrier(at_once)

        def take(_: int) -> list[tuple[str, int]]:
            barrier.wait()
            taken = [outbox.claim(limit=3) for _ in range(10)]
            return [(claim.delivery_id, claim.attempt) for claims in taken for claim in claims]

        with ThreadPoolExecutor(at_once) as pool:
            taken = [attempt for attempts in pool.map(take, range(at_once)) for attempt in attempts]
        # One for each endpoint: nobody has recorded anything yet.
        assert len(taken) == len(set(taken)) == 40
        assert {number for _, number in taken} == {1}

    def test_one_that_died_is_followed_by_another(self, outbox: Outbox) -> None:
        outbox.endpoint("https://example.com/")
        outbox.publish()
        (dead,) = outbox.claim()
        assert outbox.claim() == []
        with outbox.sessions.begin() as session:
            held = session.scalars(select(WebhookDelivery)).one()
            held.leased_until = utc_now() - timedelta(seconds=1)
        (second,) = outbox.claim()
        assert (second.attempt, second.message.id) == (2, dead.message.id)
        # What the first one says now is too late.
        outbox.record(dead, Outcome(error="timeout"))
        assert outbox.deliveries()[0].leased_until is not None
        outbox.record(second, Outcome(status=200))
        outbox.record(dead, Outcome(error="timeout"))
        assert outbox.deliveries()[0].status == "delivered"

    def test_an_endpoint_is_sent_one_message_at_a_time(self, outbox: Outbox) -> None:
        outbox.endpoint("https://example.com/")
        outbox.publish(2)
        (first,) = outbox.claim()
        assert outbox.claim() == []
        outbox.record(first, Outcome(status=500))
        (second,) = outbox.claim()
        assert second.delivery_id != first.delivery_id

    def test_an_endpoint_deleted_while_it_is_sent_to(self, outbox: Outbox) -> None:
        endpoint = outbox.endpoint("https://example.com/")
        outbox.publish()
        (claim,) = outbox.claim()
        with outbox.sessions.begin() as session:
            session.delete(session.get_one(WebhookEndpoint, endpoint))
        outbox.record(claim, Outcome(status=200))
        assert outbox.deliveries() == []


class TestForgetting:
    def test_what_ended_long_ago_goes_and_what_waits_stays(self, outbox: Outbox) -> None:
        outbox.endpoint("https://example.com/")
        outbox.publish(3)
        with outbox.sessions.begin() as session:
            old, waiting, _ = session.scalars(
                select(WebhookDelivery).order_by(WebhookDelivery.created_at)
            )
            old.status = DeliveryStatus.DELIVERED
            for one in (old, waiting):
                one.created_at -= timedelta(days=31)
                one.event.created_at -= timedelta(days=31)
        with outbox.sessions.begin() as session:
            assert forget_old(session) == 1
        with outbox.sessions() as session:
            assert len(session.scalars(select(WebhookEvent)).all()) == 2
        assert old.id not in {left.id for left in outbox.deliveries()}

    def test_secrets_that_no_longer_sign_go(self, outbox: Outbox) -> None:
        old = {"old_sealed_secret": "sealed"}
        ended = outbox.endpoint("https://a.test/", **old, old_secret_expires_at=utc_now())
        later = utc_now() + timedelta(hours=1)
        valid = outbox.endpoint("https://b.test/", **old, old_secret_expires_at=later)
        with outbox.sessions.begin() as session:
            forget_old(session)
        assert outbox.show(ended).old_sealed_secret is None
        assert outbox.show(valid).old_sealed_secret == "sealed"


class TestRun:
    @pytest.fixture
    def settings(self, outbox: Outbox) -> Settings:
        return Settings(
            database_url=outbox.url, webhook_key=SecretStr(KEY), webhook_allow_private=True
        )

    @pytest.fixture
    def start(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Settings], None]]:
        monkeypatch.setattr(delivery, "POLL_SECONDS", 0.02)
        stop, threads = threading.Event(), []

        def go(settings: Settings) -> None:
            threads.append(threading.Thread(target=delivery.run, args=(settings, stop)))
            threads[-1].start()

        yield go
        stop.set()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()

    def test_a_few_of_them_deliver_everything_once(
        self,
        outbox: Outbox,
        receiver: Receiver,
        settings: Settings,
        start: Callable[[Settings], None],
    ) -> None:
        outbox.endpoint(receiver.url)
        outbox.publish(12)
        for _ in range(3):
            start(settings)
        wait_until(lambda: all(d.status == "delivered" for d in outbox.deliveries()))
        ids = [received.headers["webhook-id"] for received in receiver.received]
        assert len(ids) == len(set(ids)) == 12

    def test_an_outage_is_waited_out(
        self,
        outbox: Outbox,
        receiver: Receiver,
        settings: Settings,
        start: Callable[[Settings], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        outbox.endpoint(receiver.url)
        outbox.publish()
        real, failures = delivery.claim_due, []

        def flaky(*arguments: object, **more: object) -> object:
            if len(failures) < 2:
                failures.append(1)
                raise delivery.SQLAlchemyError if len(failures) == 1 else RuntimeError("odd")
            return real(*arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(delivery, "claim_due", flaky)
        start(settings)
        wait_until(lambda: len(receiver.received) == 1)
        assert len(failures) == 2

    def test_without_a_key_it_ends_at_once(self, settings: Settings) -> None:
        delivery.run(settings.model_copy(update={"webhook_key": SecretStr("")}), threading.Event())


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_names_are_looked_up_apart_from_the_database(
    outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    real = socket.getaddrinfo

    def note(host: str, *rest: object, **more: object) -> object:
        if host == "localhost":
            names.append(threading.current_thread().name)
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", note)
    outbox.endpoint(receiver.url.replace("127.0.0.1", "localhost"))
    outbox.publish()
    outbox.deliver()
    assert names
    assert not any(name.startswith("webhook-database") for name in names)
