"""Whose job is next: two tenants, three priorities, limits, and workers that come at the same moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from models.base import utc_now
from models.fair_queue import claim_next
from models.job import Job, JobStatus, Lease, Stage, lock_job, release_lease, succeed
from models.priority import Priority
from models.project import Project
from models.session import SessionFactory, make_engine, session_factory
from tests.models.factories import make_job, make_project


def take(session: Session, jobs_running: int = 0) -> Job | None:
    lease = claim_next(session, owner="w", lease_seconds=60, jobs_running=jobs_running)
    if lease is None:
        return None
    return session.get_one(Job, lease.job_id)


def owners(session: Session, turns: int, jobs_running: int = 0) -> list[str]:
    """The tenants whose jobs are taken, in order; nothing ends meanwhile."""
    taken = [take(session, jobs_running) for _ in range(turns)]
    return [session.get_one(Project, job.project_id).name for job in taken if job is not None]


def queue(session: Session, name: str, count: int, **facts: object) -> Project:
    project = make_project(session, name)
    for _ in range(count):
        make_job(session, project, **facts)
    return project


class TestTurns:
    def test_behind_fifty_jobs_of_one_tenant_the_others_comes_second(
        self, session: Session
    ) -> None:
        queue(session, "many", 50)
        queue(session, "one", 1)
        assert owners(session, 4) == ["many", "one", "many", "many"]

    def test_with_one_worker_tenants_take_turns(self, session: Session) -> None:
        queue(session, "many", 3)
        queue(session, "few", 2)
        served = []
        for _ in range(5):
            job = take(session)
            assert job is not None
            served.append(session.get_one(Project, job.project_id).name)
            succeed(session, job)
            session.flush()
        assert served == ["many", "few", "many", "few", "many"]

    def test_within_a_tenant_the_oldest_comes_first(self, session: Session) -> None:
        project = make_project(session)
        now = utc_now()
        made = [make_job(session, project, created_at=now - timedelta(hours=h)) for h in (1, 3, 2)]
        ordered = [take(session) for _ in range(3)]
        assert ordered == [made[1], made[2], made[0]]
        assert take(session) is None

    def test_priority_comes_before_fairness(self, session: Session) -> None:
        queue(session, "low", 2).priority = Priority.LOW
        queue(session, "normal", 2)
        queue(session, "high", 2).priority = Priority.HIGH
        assert owners(session, 6) == ["high", "high", "normal", "normal", "low", "low"]

    def test_a_job_in_review_takes_nobodys_turn(self, session: Session) -> None:
        first = queue(session, "first", 2)
        held = take(session)
        assert held is not None
        held.stage = Stage.REVIEW
        release_lease(held)
        queue(session, "second", 1, created_at=utc_now())
        session.flush()
        # Neither has a job that a worker holds; the second tenant was never served.
        assert owners(session, 2) == ["second", "first"]
        assert first.quota_jobs_running is None

    @pytest.mark.parametrize("status", sorted(set(JobStatus) - {JobStatus.QUEUED}))
    def test_only_queued_jobs_are_taken(self, session: Session, status: JobStatus) -> None:
        make_job(session, status=status)
        assert take(session) is None


class TestLimits:
    def test_a_tenant_at_its_limit_waits_while_others_do_not(self, session: Session) -> None:
        queue(session, "bounded", 3).quota_jobs_running = 1
        queue(session, "free", 3)
        assert owners(session, 9) == ["bounded", "free", "free", "free"]
        running = session.scalars(select(Job).where(Job.status == JobStatus.RUNNING)).first()
        assert running is not None
        succeed(session, running)
        session.flush()
        assert owners(session, 9) == ["bounded"]

    def test_the_services_limit_holds_where_a_project_has_none(self, session: Session) -> None:
        queue(session, "default", 3)
        queue(session, "unbounded", 3).quota_jobs_running = 0
        assert Counter(owners(session, 9, jobs_running=2)) == {"default": 2, "unbounded": 3}


class TestTime:
    def test_is_added_over_attempts_and_ends_with_a_lost_lease(self, session: Session) -> None:
        job = make_job(session)
        assert take(session) is job
        assert job.claimed_at is not None
        job.claimed_at -= timedelta(seconds=100)
        job.lease_expires_at = utc_now() - timedelta(seconds=70)
        release_lease(job)
        assert job.gpu_seconds == pytest.approx(30, abs=5)
        release_lease(job)
        assert job.gpu_seconds == pytest.approx(30, abs=5)
        job.status = JobStatus.QUEUED
        session.flush()
        assert take(session) is job
        job.claimed_at -= timedelta(seconds=20)
        succeed(session, job)
        assert job.gpu_seconds == pytest.approx(50, abs=5)


@pytest.fixture
def sessions(database_url: str) -> Iterator[SessionFactory]:
    engine = make_engine(database_url, pool_size=16)
    yield session_factory(engine)
    engine.dispose()


class TestRaces:
    def claim_at_once(self, sessions: SessionFactory, workers: int, limit: int = 0) -> list[Lease]:
        barrier = Barrier(workers)

        def claim_one(number: int) -> Lease | None:
            barrier.wait()
            with sessions.begin() as session:
                return claim_next(session, owner=f"w{number}", lease_seconds=60, jobs_running=limit)

        with ThreadPoolExecutor(workers) as pool:
            return [lease for lease in pool.map(claim_one, range(workers)) if lease is not None]

    def test_no_job_is_taken_twice_and_tenants_share_the_workers(
        self, sessions: SessionFactory
    ) -> None:
        with sessions.begin() as session:
            queue(session, "many", 12)
            queue(session, "few", 4)
        leases = self.claim_at_once(sessions, 8)
        assert len({lease.job_id for lease in leases}) == 8
        with sessions() as session:
            names = Counter(
                session.get_one(Project, session.get_one(Job, lease.job_id).project_id).name
                for lease in leases
            )
        assert names == {"many": 4, "few": 4}

    def test_a_limit_is_not_passed_together(self, sessions: SessionFactory) -> None:
        with sessions.begin() as session:
            queue(session, "many", 8)
        assert len(self.claim_at_once(sessions, 8, limit=2)) == 2

    def test_a_job_that_somebody_holds_is_passed_over_without_waiting(
        self, sessions: SessionFactory
    ) -> None:
        with sessions.begin() as session:
            project = queue(session, "a", 2)
            first, second = session.scalars(
                select(Job.id).where(Job.project_id == project.id).order_by(Job.created_at, Job.id)
            )
        with sessions.begin() as other:
            lock_job(other, first)
            with sessions.begin() as session:
                session.execute(text("set local lock_timeout = '2s'"))
                lease = claim_next(session, owner="w", lease_seconds=60)
        assert lease == Lease(second, 1)
