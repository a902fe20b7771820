"""Being told of changes instead of asking: what is told, to whom, and what happens when nothing is heard.

Where a stream is to be told, the times at which it would look by itself are out of reach, so that only a
notice can have moved it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import httpx
import psycopg
import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.orm import Session

from api.app import create_app
from api.event_stream import changes as changes_module
from api.event_stream import service
from api.event_stream.changes import EVERY_JOB, LISTENER_NAME, Bell, Changes
from models.job import Job, JobStatus, append_event, lock_job
from models.model_version import VersionKind
from models.scope import Scope
from models.session import make_engine, psycopg_arguments
from models.settings import Settings
from models.storage import Storage
from tests.api.conftest import NOWHERE, Place
from tests.api.server import serve
from tests.api.test_event_stream import events

pytestmark = pytest.mark.long

NEVER = 1_000.0


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(**psycopg_arguments(url), autocommit=True)


def listeners(url: str) -> list[int]:
    """The server processes that listen for somebody."""
    with connect(url) as connection:
        found = connection.execute(
            "select pid from pg_stat_activity where application_name = %s and datname = %s",
            (LISTENER_NAME, make_url(url).database),
        )
        return [int(str(row[0])) for row in found]


class Town:
    """A service on a database of its own, with two jobs that are going on."""

    def __init__(self, settings: Settings, storage: Storage, session: Session) -> None:
        self.url = settings.database_url
        place = Place(session, storage)
        self.session = session
        project = place.project()
        self.token = place.key(project, Scope.CUSTOMER)
        base = place.version("tiny", VersionKind.BASE)
        model = place.version("aligned", VersionKind.ALIGNED, parent=base)
        self.jobs = [place.job(project, model, status=JobStatus.RUNNING) for _ in range(2)]
        session.commit()
        self.app = create_app(settings)
        self.changes: Changes = self.app.state.changes

    def tell(self, job: Job, message: str) -> None:
        append_event(self.session, lock_job(self.session, job.id), message)
        self.session.commit()

    @contextmanager
    def stream(self, address: str, job: Job) -> Iterator[Iterator[dict[str, str]]]:
        """What a follower of a job is sent, from its first event on."""
        with (
            httpx.Client(
                base_url=address, headers={"authorization": f"Bearer {self.token}"}, timeout=10
            ) as client,
            client.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events/stream") as response,
        ):
            coming = events(response.iter_lines())
            assert "Created." in next(coming)["data"]
            yield coming

    @contextmanager
    def hearing(self) -> Iterator[str]:
        with serve(self.app) as address:
            until(lambda: self.changes.is_hearing)
            yield address


@pytest.fixture(autouse=True)
def _only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_ANYWAY_SECONDS", "POLL_SECONDS", "HEARTBEAT_SECONDS"):
        monkeypatch.setattr(service, name, NEVER)
    monkeypatch.setattr(service, "LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(changes_module, "FIRST_PAUSE_SECONDS", 0.05)


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    engine = make_engine(database_url)
    with Session(engine, expire_on_commit=False) as session:
        yield session
    engine.dispose()


@pytest.fixture
def settings(database_url: str, settings: Settings) -> Settings:
    return settings.model_copy(update={"database_url": database_url})


@pytest.fixture
def town(settings: Settings, storage: Storage, session: Session) -> Town:
    return Town(settings, storage, session)


class TestNotices:
    """What the database tells by itself."""

    def test_one_for_each_job_when_the_transaction_commits_and_none_when_it_does_not(
        self, town: Town
    ) -> None:
        one, two = town.jobs
        with connect(town.url) as connection:
            connection.execute("LISTEN titer_job")
            for message in ("first", "second"):
                append_event(town.session, lock_job(town.session, one.id), message)
                town.session.flush()
            append_event(town.session, lock_job(town.session, two.id), "third")
            town.session.flush()
            assert list(connection.notifies(timeout=0.1)) == []
            town.session.commit()
            told = [notice.payload for notice in connection.notifies(timeout=5, stop_after=2)]
            assert sorted(told) == sorted(f"{job.project_id} {job.id}" for job in (one, two))
            append_event(town.session, lock_job(town.session, one.id), "regretted")
            town.session.flush()
            town.session.rollback()
            assert list(connection.notifies(timeout=0.1)) == []


class TestBells:
    def rings(self, changes: Changes, payload: str, *topics: str) -> list[str]:
        rung: list[str] = []

        class Noted(Bell):
            def __init__(self, topic: str) -> None:
                super().__init__()
                self.topic = topic

            def ring(self) -> None:
                rung.append(self.topic)

        for topic in topics:
            changes._bells[topic] = {Noted(topic)}
        changes._tell(payload)
        return rung

    def test_ring_for_the_job_its_project_and_everybody_and_for_no_other(self) -> None:
        topics = ("ftjob-a", "ftjob-b", "proj-a", "proj-b", EVERY_JOB)
        changes = Changes(NOWHERE.database_url)
        assert self.rings(changes, "proj-a ftjob-a", *topics) == [EVERY_JOB, "proj-a", "ftjob-a"]

    @pytest.mark.parametrize("payload", ["", "word", "proj-a", " "])
    def test_do_not_ring_for_what_names_no_job(self, payload: str) -> None:
        assert self.rings(Changes(NOWHERE.database_url), payload, EVERY_JOB, "proj-a", "") == []

    def test_are_gone_with_whoever_waited(self) -> None:
        changes = Changes(NOWHERE.database_url)
        with (
            changes.bell("a"),
            changes.bell("a"),
            pytest.raises(ZeroDivisionError),
            changes.bell("b"),
        ):
            raise ZeroDivisionError
        assert changes._bells == {}


class TestFollowing:
    def test_a_stream_is_told(self, town: Town) -> None:
        job = town.jobs[0]
        with town.hearing() as address, town.stream(address, job) as coming:
            for message in ("one", "two", "three"):
                town.tell(job, message)
                assert message in next(coming)["data"]

    def test_another_jobs_stream_does_not_even_look(
        self, town: Town, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[str] = []
        look_up = service.look_up

        def noted(sessions: object, job_id: str, sequence: int) -> object:
            looks.append(job_id)
            return look_up(sessions, job_id, sequence)  # type: ignore[arg-type]

        monkeypatch.setattr(service, "look_up", noted)
        one, two = town.jobs
        with (
            town.hearing() as address,
            town.stream(address, one) as of_one,
            town.stream(address, two),
        ):
            until(lambda: two.id in looks)
            looks.clear()
            town.tell(one, "news")
            assert "news" in next(of_one)["data"]
            assert set(looks) == {one.id}

    def test_a_burst_is_looked_at_a_few_times(
        self, town: Town, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "LOOK_AGAIN_SECONDS", 0.5)
        looks: list[float] = []
        look_up = service.look_up

        def noted(*arguments: object) -> object:
            looks.append(time.monotonic())
            return look_up(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(service, "look_up", noted)
        job = town.jobs[0]
        with town.hearing() as address, town.stream(address, job) as coming:
            for number in range(30):
                town.tell(job, f"number {number}")
            assert all(f"number {number}" in next(coming)["data"] for number in range(30))
            assert min(b - a for a, b in pairwise(looks)) > 0.45


class TestListener:
    def test_comes_back_and_nothing_is_missed(self, town: Town) -> None:
        job = town.jobs[0]
        with town.hearing() as address, town.stream(address, job) as coming:
            before = listeners(town.url)
            assert len(before) == 1
            with connect(town.url) as connection:
                connection.execute("select pg_terminate_backend(%s)", before)
                town.tell(job, "while nobody listened")
            assert "while nobody listened" in next(coming)["data"]
            until(lambda: town.changes.is_hearing and listeners(town.url) not in ([], before))
            town.tell(job, "and on")
            assert "and on" in next(coming)["data"]

    def test_finds_a_database_that_was_away_when_it_began(
        self, settings: Settings, storage: Storage, session: Session
    ) -> None:
        there = make_url(settings.database_url)
        later: URL = there.set(database=f"{there.database}_later")
        away = settings.model_copy(
            update={"database_url": later.render_as_string(hide_password=False)}
        )
        app = create_app(away)
        with connect(settings.database_url) as connection:
            with serve(app) as address:
                assert httpx.get(f"{address}/v1/models").status_code in (401, 503)
                assert not app.state.changes.is_hearing
                connection.execute(f'create database "{later.database}"'.encode())
                until(lambda: app.state.changes.is_hearing)
            connection.execute(f'drop database "{later.database}"'.encode())

    def test_does_not_believe_a_connection_on_which_nothing_comes(
        self,
        town: Town,
        settings: Settings,
        template_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Another database takes the LISTEN just as a pooler does, and as little arrives there.
        monkeypatch.setattr(changes_module, "CHECK_SECONDS", 0.05)
        monkeypatch.setattr(service, "POLL_SECONDS", 0.05)
        elsewhere = make_url(template_url).set(database="postgres")
        address = elsewhere.render_as_string(hide_password=False)
        town.app = create_app(settings.model_copy(update={"listen_url": address}))
        job = town.jobs[0]
        with serve(town.app) as url, town.stream(url, job) as coming:
            until(lambda: listeners(address) != [])
            time.sleep(0.3)
            assert not town.app.state.changes.is_hearing
            town.tell(job, "found by looking")
            assert "found by looking" in next(coming)["data"]

    def test_may_listen_by_another_way(self, town: Town, settings: Settings) -> None:
        direct = make_url(settings.database_url).update_query_dict({"connect_timeout": "3"})
        other = settings.model_copy(
            update={"listen_url": direct.render_as_string(hide_password=False)}
        )
        town.app = create_app(other)
        town.changes = town.app.state.changes
        job = town.jobs[0]
        with town.hearing() as address, town.stream(address, job) as coming:
            town.tell(job, "heard")
            assert "heard" in next(coming)["data"]

    def test_leaves_nothing_behind(self, town: Town) -> None:
        threads = threading.active_count()
        with town.hearing():
            assert len(listeners(town.url)) == 1
            began = time.monotonic()
        assert time.monotonic() - began < 5
        until(lambda: listeners(town.url) == [])
        assert not town.changes.is_hearing
        until(lambda: threading.active_count() <= threads)

    def test_stops_at_once_while_the_database_is_away(self) -> None:
        app = create_app(NOWHERE)
        with serve(app):
            time.sleep(0.2)
            began = time.monotonic()
        assert time.monotonic() - began < 2
