"""The outbox: every end of a job and every decision is told once, to those who want it, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from models.api_key import Project
from models.base import utc_now
from models.data_risk import DataReview
from models.job import JobKind, JobStatus, Stage, cancel, claim, fail, lock_job, succeed
from models.model_version import Gate
from models.session import SessionFactory, make_engine, session_factory
from models.webhook import (
    DeliveryStatus,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookEventType,
    publish,
)
from tests.models.factories import make_job, make_project, make_screening, make_version


def make_endpoint(
    session: Session, project: Project, *types: WebhookEventType, **facts: object
) -> WebhookEndpoint:
    endpoint = WebhookEndpoint(
        **{
            "project_id": project.id,
            "name": "hook",
            "url": "https://example.com/hook",
            "event_types": list(types or WebhookEventType),
            "sealed_secret": "sealed",
            "secret_hint": "whsec_...abcd",
            **facts,
        }
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def told(session: Session) -> list[tuple[str, str]]:
    """Type and object of every event, in order."""
    session.flush()
    events = session.scalars(select(WebhookEvent).order_by(WebhookEvent.created_at)).all()
    return [(event.type, event.data["id"]) for event in events]


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session)


class TestJobs:
    def test_each_end_of_a_fine_tuning_job_is_told(
        self, session: Session, project: Project
    ) -> None:
        make_endpoint(session, project)
        jobs = [make_job(session, project, status=JobStatus.RUNNING) for _ in range(3)]
        succeed(session, jobs[0])
        session.flush()
        fail(session, jobs[1], code="out_of_memory", message="It is too large.")
        session.flush()
        cancel(session, jobs[2])
        assert told(session) == [
            ("fine_tuning.job.succeeded", jobs[0].id),
            ("fine_tuning.job.failed", jobs[1].id),
            ("fine_tuning.job.cancelled", jobs[2].id),
        ]
        failed = session.scalars(
            select(WebhookEvent).where(WebhookEvent.type == "fine_tuning.job.failed")
        ).one()
        assert failed.data["error"] == {"code": "out_of_memory", "message": "It is too large."}
        assert failed.id.startswith("evt_")

    @pytest.mark.parametrize("kind", [JobKind.ALIGN, JobKind.CERTIFY, JobKind.EVALUATE])
    def test_other_kinds_have_words_of_their_own(
        self, session: Session, project: Project, kind: JobKind
    ) -> None:
        make_endpoint(session, project)
        job = make_job(session, project, kind=kind, status=JobStatus.RUNNING)
        succeed(session, job)
        assert told(session) == [("titer.job.succeeded", job.id)]

    def test_what_is_no_end_is_not_told(self, session: Session, project: Project) -> None:
        make_endpoint(session, project)
        job = make_job(session, project)
        assert claim(session, job.id, owner="w", lease_seconds=60) is not None
        lock_job(session, job.id).stage = Stage.EVALUATE
        assert told(session) == []

    def test_many_flushes_tell_once(self, session: Session, project: Project) -> None:
        make_endpoint(session, project)
        job = make_job(session, project)
        cancel(session, job)
        for _ in range(3):
            job.event_count += 1
            session.flush()
        assert len(told(session)) == 1

    def test_what_was_undone_is_not_told(self, session: Session, project: Project) -> None:
        make_endpoint(session, project)
        job = make_job(session, project)
        with session.begin_nested() as savepoint:
            cancel(session, job)
            session.flush()
            savepoint.rollback()
        session.refresh(job)
        assert told(session) == []
        succeed_later = lock_job(session, job.id)
        cancel(session, succeed_later)
        assert len(told(session)) == 1


class TestGates:
    @pytest.mark.parametrize(
        ("gate", "word"),
        [(Gate.HELD, "held"), (Gate.RELEASED, "released"), (Gate.BLOCKED, "blocked")],
    )
    def test_each_decision_is_told_with_its_reasons(
        self, session: Session, project: Project, gate: Gate, word: str
    ) -> None:
        make_endpoint(session, project)
        version = make_version(session, project, gate=Gate.PENDING)
        version.gate, version.gate_reasons = gate, ["HS is 12%."]
        assert told(session) == [(f"titer.model.{word}", version.id)]
        assert session.scalars(select(WebhookEvent)).one().data["reasons"] == ["HS is 12%."]

    def test_one_that_is_decided_on_as_it_is_made(self, session: Session, project: Project) -> None:
        make_endpoint(session, project)
        version = make_version(session, project, gate=Gate.RELEASED)
        assert told(session) == [("titer.model.released", version.id)]
        assert session.scalars(select(WebhookEvent)).one().data["reasons"] == []

    def test_an_aligned_models_is_told_to_the_project_of_its_job(
        self, session: Session, project: Project
    ) -> None:
        make_endpoint(session, project)
        version = make_version(session, gate=Gate.PENDING)
        version.job_id = make_job(session, project, kind=JobKind.ALIGN).id
        session.flush()
        version.gate = Gate.RELEASED
        assert told(session) == [("titer.model.released", version.id)]


class TestData:
    @pytest.mark.parametrize(
        ("review", "word"),
        [
            (DataReview.RELEASED, "released"),
            (DataReview.REJECTED, "rejected"),
            (DataReview.EXPIRED, "rejected"),
            (DataReview.WITHDRAWN, None),
        ],
    )
    def test_a_hold_and_its_end_are_told_with_what_was_found(
        self, session: Session, project: Project, review: DataReview, word: str | None
    ) -> None:
        make_endpoint(session, project)
        job = make_job(session, project)
        screening = make_screening(session, job)
        session.flush()
        screening.review = DataReview.WAITING
        assert told(session) == [("titer.data.held", job.id)]
        facts = session.scalars(select(WebhookEvent)).one().data
        assert "2 of 12 training rows were flagged" in facts["reasons"][0]
        screening.conclude_review(review, "Read them.")
        later = [(f"titer.data.{word}", job.id)] if word else []
        assert told(session)[1:] == later


class TestWhoIsTold:
    def test_those_who_want_it_and_nobody_else(self, session: Session, project: Project) -> None:
        wanting = [
            make_endpoint(session, project, WebhookEventType.FINETUNE_CANCELLED) for _ in range(2)
        ]
        make_endpoint(session, project, WebhookEventType.FINETUNE_FAILED)
        make_endpoint(session, make_project(session, "globex"))
        make_endpoint(session, project, disabled_at=project.created_at)
        cancel(session, make_job(session, project))
        session.flush()
        deliveries = session.scalars(select(WebhookDelivery)).all()
        assert {delivery.endpoint_id for delivery in deliveries} == {e.id for e in wanting}
        assert len({delivery.event_id for delivery in deliveries}) == 1
        assert {delivery.status for delivery in deliveries} == {DeliveryStatus.PENDING}

    def test_staff_are_told_of_every_project_and_of_whose_it_is(
        self, session: Session, project: Project
    ) -> None:
        provider = make_project(session, "provider")
        hears_all = make_endpoint(session, provider, all_projects=True)
        own = make_endpoint(session, project)
        make_endpoint(session, provider)
        make_version(session, project, gate=Gate.HELD)
        session.flush()
        (event,) = session.scalars(select(WebhookEvent)).all()
        assert (event.project_id, event.data["project"]) == (project.id, project.id)
        deliveries = session.scalars(select(WebhookDelivery)).all()
        assert {delivery.endpoint_id for delivery in deliveries} == {hears_all.id, own.id}

    def test_not_once_their_own_project_is_archived(
        self, session: Session, project: Project
    ) -> None:
        provider = make_project(session, "provider")
        make_endpoint(session, provider, all_projects=True)
        provider.archived_at = utc_now()
        session.flush()
        make_version(session, project, gate=Gate.HELD)
        assert told(session) == []

    def test_what_nobody_wants_is_not_kept(self, session: Session, project: Project) -> None:
        cancel(session, make_job(session, project))
        assert told(session) == []
        assert publish(session, project.id, WebhookEventType.CANARY_ALARM, {"id": "x"}) is None


class TestRace:
    @pytest.fixture
    def sessions(self, database_url: str) -> Iterator[SessionFactory]:
        engine = make_engine(database_url)
        yield session_factory(engine)
        engine.dispose()

    def test_an_endpoint_deleted_meanwhile_does_not_fail_the_job(
        self, sessions: SessionFactory
    ) -> None:
        with sessions.begin() as session:
            project = make_project(session)
            endpoint = make_endpoint(session, project)
            job = make_job(session, project)
        ended: list[str] = []

        def end() -> None:
            with sessions.begin() as session:
                cancel(session, lock_job(session, job.id))
            ended.append(job.id)

        thread = threading.Thread(target=end)
        with sessions.begin() as session:
            session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id))
            session.flush()
            thread.start()
            # It waits for us: whether the endpoint goes is not decided yet.
            thread.join(0.2)
            assert ended == []
        thread.join(10)
        assert ended == [job.id]
        with sessions() as session:
            assert session.scalars(select(WebhookDelivery)).all() == []
