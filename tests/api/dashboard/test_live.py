"""An open page is told that it has changed: at once, of what its viewer may see, and no more than that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from api.app import create_app
from api.dashboard import live_routes
from api.dashboard.live_routes import begin_watch
from api.dashboard.viewer import Viewer
from api.event_stream.changes import EVERY_JOB
from api.seed.states import Provider, seed_base, seed_job, seed_keys
from models.api_key import ApiKey
from models.base import utc_now
from models.job import Job, JobStatus, append_event, lock_job
from models.session import SessionFactory, make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from tests.api.conftest import Tenant
from tests.api.dashboard.conftest import SignIn, csrf
from tests.api.server import serve
from tests.api.test_changes import NEVER, until

CHANGED = ["event: changed", "data: -"]


class TestWhoIsToldOfWhat:
    def watch(self, session: Session, key: ApiKey, job: str = "") -> tuple[str, str]:
        watch = begin_watch(session, Viewer(key, ""), job)
        return watch.topic, watch.project_id

    def test_a_customer_of_its_own_projects_jobs_and_staff_of_all(
        self, session: Session, newcomer: Provider
    ) -> None:
        customer, operator = newcomer.customer, newcomer.operator
        assert self.watch(session, customer) == (customer.project_id, customer.project_id)
        assert self.watch(session, operator) == (EVERY_JOB, operator.project_id)

    def test_a_jobs_page_of_that_job_if_it_may_be_seen(
        self, session: Session, newcomer: Provider, sign_in: SignIn
    ) -> None:
        seed_base(session)
        own, others = (
            seed_job(session, project, name=name, model="sandbox-base", status=JobStatus.QUEUED)
            for project, name in ((newcomer.customer.project, "a"), (newcomer.other, "b"))
        )
        session.commit()
        assert self.watch(session, newcomer.customer, own.id)[0] == own.id
        assert self.watch(session, newcomer.operator, others.id)[0] == others.id
        client = sign_in(newcomer.customer_token)
        refused = client.get("/dashboard/live", params={"job": others.id})
        missing = client.get("/dashboard/live", params={"job": "ftjob-none"})
        assert (refused.status_code, missing.status_code) == (404, 404)
        assert refused.text.replace(others.id, "") == missing.text.replace("ftjob-none", "")

    def test_nobody_of_nothing(self, visitor: TestClient) -> None:
        asked = visitor.get("/dashboard/live", headers={"accept": "text/event-stream"})
        assert (asked.status_code, asked.text) == (401, "")
        # A person who opens the address is led to the door, as everywhere.
        assert visitor.get("/dashboard/live").status_code == 303

    def test_too_many_pages_are_told_so(
        self, operator: Tenant, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = sign_in(operator.token)
        slots = client.app.state.event_slots  # type: ignore[attr-defined]
        monkeypatch.setattr(slots, "_limit", 0)
        assert client.get("/dashboard/live").status_code == 429


@dataclass
class Site:
    """A service with an operator and a customer, and a job of each of two customers."""

    address: str
    sessions: SessionFactory
    provider: Provider
    own: Job
    others: Job

    @contextmanager
    def page(self, token: str, job: str = "") -> Iterator[Iterator[list[str]]]:
        """What an open page is told after its greeting, an event at a time."""
        with httpx.Client(base_url=self.address, timeout=10) as client:
            form = {"csrf": csrf(client.get("/dashboard/login")), "api_key": token}
            assert client.post("/dashboard/login", data=form).status_code == 303
            with client.stream("GET", "/dashboard/live", params={"job": job}) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                assert response.headers["cache-control"] == "no-store"
                assert response.headers["x-accel-buffering"] == "no"
                frames = self.frames(response.iter_lines())
                assert next(frames) == ["retry: 1000"]
                # Whatever happened since the page was drawn.
                assert next(frames) == CHANGED
                yield frames

    def frames(self, lines: Iterator[str]) -> Iterator[list[str]]:
        frame: list[str] = []
        for line in lines:
            if line:
                frame.append(line)
            else:
                yield frame
                frame = []

    def tell(self, job: Job) -> None:
        with self.sessions.begin() as session:
            append_event(session, lock_job(session, job.id), "secret words")

    def end(self, key: ApiKey) -> None:
        with self.sessions.begin() as session:
            session.get_one(ApiKey, key.id).revoked_at = utc_now()


@pytest.fixture
def site(
    database_url: str, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setattr(live_routes, "ASK_ANYWAY_SECONDS", NEVER)
    monkeypatch.setattr(live_routes, "POLL_SECONDS", NEVER)
    monkeypatch.setattr(live_routes, "TELL_AGAIN_SECONDS", 0.0)
    engine = make_engine(database_url)
    sessions = session_factory(engine)
    with sessions.begin() as session:
        provider = seed_keys(session)
        seed_base(session)
        own, others = (
            seed_job(session, project, name=name, model="sandbox-base", status=JobStatus.QUEUED)
            for project, name in ((provider.customer.project, "a"), (provider.other, "b"))
        )
    # Three of them for one project.
    few = {"database_url": database_url, "max_event_streams": 30}
    app = create_app(settings.model_copy(update=few))
    with serve(app) as address:
        until(lambda: app.state.changes.is_hearing)
        yield Site(address, sessions, provider, own, others)
    engine.dispose()


@pytest.mark.long
class TestTelling:
    def test_staff_hear_of_every_job_and_a_customer_of_its_own(self, site: Site) -> None:
        customers, staff = site.provider.customer_token, site.provider.operator_token
        with (
            site.page(staff) as all_jobs,
            site.page(customers) as own_jobs,
            site.page(customers, site.own.id) as own_job,
        ):
            site.tell(site.others)
            assert next(all_jobs) == CHANGED
            site.tell(site.own)
            assert [next(page) for page in (all_jobs, own_jobs, own_job)] == [CHANGED] * 3
            # What the customer was not told would have come before this end.
            site.end(site.provider.customer)
            site.tell(site.own)
            assert (list(own_jobs), list(own_job)) == ([], [])
            assert next(all_jobs) == CHANGED

    def test_a_dead_key_is_told_no_more_and_comes_back_to_the_door(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(live_routes, "ASK_ANYWAY_SECONDS", 0.05)
        with site.page(site.provider.operator_token) as page:
            assert next(page) == CHANGED
            site.end(site.provider.operator)
            told = list(page)
        assert all(frame == CHANGED for frame in told)

    def test_it_ends_after_a_while_and_gives_its_place_back(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(live_routes, "LONGEST_SECONDS", 0.1)
        for _ in range(5):
            with site.page(site.provider.customer_token) as page:
                assert list(page) == []
