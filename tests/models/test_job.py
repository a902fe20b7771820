"""The job's state machine on a real PostgreSQL: transitions, leases, the event log, and races."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models.base import utc_now
from models.job import (
    ALLOWED_TRANSITIONS,
    TERMINAL,
    IllegalTransition,
    Job,
    JobEvent,
    JobNotFound,
    JobStatus,
    Lease,
    LeaseLost,
    Stage,
    append_event,
    await_review,
    cancel,
    claim,
    fail,
    heartbeat,
    hold,
    keep_progress,
    lock_job,
    move,
    reopen,
    requeue_lost,
    succeed,
)
from models.session import SessionFactory, make_engine, session_factory
from tests.models.factories import make_job, make_project

PAST = timedelta(seconds=-1)


def claimed(session: Session, **facts: object) -> tuple[Job, Lease]:
    job = make_job(session, **facts)
    lease = claim(session, job.id, owner="w1", lease_seconds=60)
    assert lease is not None
    return job, lease


def expire(job: Job) -> None:
    job.lease_expires_at = utc_now() + PAST


def log_of(session: Session, job_id: str) -> list[JobEvent]:
    session.flush()
    return list(
        session.scalars(
            select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.sequence)
        )
    )


class TestMove:
    @pytest.mark.parametrize("start", JobStatus)
    @pytest.mark.parametrize("end", JobStatus)
    def test_follows_the_table_and_nothing_else(self, start: JobStatus, end: JobStatus) -> None:
        job = Job(status=start, lease_owner="w1", lease_expires_at=utc_now())
        if end in ALLOWED_TRANSITIONS[start]:
            move(job, end)
            assert job.status == end
            return
        with pytest.raises(IllegalTransition):
            move(job, end)
        assert job.status == start

    def test_every_status_has_a_line_and_terminal_ones_end(self) -> None:
        assert set(ALLOWED_TRANSITIONS) == set(JobStatus)
        assert {s for s, after in ALLOWED_TRANSITIONS.items() if not after} == TERMINAL

    @pytest.mark.parametrize("end", sorted(TERMINAL | {JobStatus.QUEUED}))
    def test_leaving_running_drops_the_lease(self, end: JobStatus) -> None:
        job = Job(status=JobStatus.RUNNING, lease_owner="w1", lease_expires_at=utc_now())
        move(job, end)
        assert job.lease_owner is None
        assert job.lease_expires_at is None
        assert (job.finished_at is not None) == (end in TERMINAL)


class TestClaim:
    def test_takes_a_queued_job(self, session: Session) -> None:
        job, lease = claimed(session)
        assert lease == Lease(job.id, 1)
        assert job.status == JobStatus.RUNNING
        assert job.lease_owner == "w1"
        assert job.started_at is not None
        assert job.lease_expires_at is not None
        assert 50 < (job.lease_expires_at - utc_now()).total_seconds() <= 60
        assert [e.message for e in log_of(session, job.id)] == ["Job started."]

    @pytest.mark.parametrize("status", sorted(set(JobStatus) - {JobStatus.QUEUED}))
    def test_takes_no_other(self, session: Session, status: JobStatus) -> None:
        job = make_job(session, status=status)
        assert claim(session, job.id, owner="w1", lease_seconds=60) is None
        assert log_of(session, job.id) == []

    def test_takes_no_absent_job(self, session: Session) -> None:
        assert claim(session, "ftjob-none", owner="w1", lease_seconds=60) is None

    def test_a_second_attempt_keeps_the_start_and_says_so(self, session: Session) -> None:
        job, _ = claimed(session)
        started = job.started_at
        expire(job)
        requeue_lost(session, job, max_attempts=3)
        assert claim(session, job.id, owner="w2", lease_seconds=60) == Lease(job.id, 2)
        assert job.started_at == started
        assert log_of(session, job.id)[-1].message == "Job resumed (attempt 2)."


class TestHold:
    def test_gives_the_job_to_its_worker(self, session: Session) -> None:
        job, lease = claimed(session)
        assert hold(session, lease) is job

    @pytest.mark.parametrize("end", [succeed, cancel])
    def test_a_lease_ends_with_the_job(
        self, session: Session, end: Callable[[Session, Job], None]
    ) -> None:
        job, lease = claimed(session)
        end(session, job)
        session.flush()
        with pytest.raises(LeaseLost):
            hold(session, lease)
        with pytest.raises(LeaseLost):
            heartbeat(session, lease, lease_seconds=60)

    def test_a_lease_ends_with_the_next_attempt(self, session: Session) -> None:
        job, old = claimed(session)
        expire(job)
        requeue_lost(session, job, max_attempts=3)
        with pytest.raises(LeaseLost):
            hold(session, old)
        new = claim(session, job.id, owner="w2", lease_seconds=60)
        assert new is not None
        with pytest.raises(LeaseLost):
            hold(session, old)
        assert hold(session, new) is job

    def test_nobody_works_on_a_job_that_awaits_review(self, session: Session) -> None:
        job, lease = claimed(session)
        job.stage = Stage.REVIEW
        assert job.awaits_review
        with pytest.raises(LeaseLost):
            hold(session, lease)

    def test_a_late_heartbeat_still_counts_while_nobody_else_has_the_job(
        self, session: Session
    ) -> None:
        job, lease = claimed(session)
        expire(job)
        heartbeat(session, lease, lease_seconds=60)
        assert job.lease_expires_at is not None
        assert job.lease_expires_at > utc_now()


class TestRequeueLost:
    def test_a_job_that_gets_further_each_time_is_not_given_up(self, session: Session) -> None:
        job = make_job(session)
        for step in (10, 20, 30, 40):
            claim(session, job.id, owner="w1", lease_seconds=60)
            keep_progress(job, step)
            expire(job)
            requeue_lost(session, job, max_attempts=2)
            assert (job.status, job.losses_in_a_row) == (JobStatus.QUEUED, 1)
        assert job.lost_leases == 4

    def test_getting_as_far_as_before_is_no_progress(self, session: Session) -> None:
        job = make_job(session)
        for _ in range(2):
            claim(session, job.id, owner="w1", lease_seconds=60)
            keep_progress(job, 10)
            expire(job)
            requeue_lost(session, job, max_attempts=2)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "worker_lost")

    def test_gives_up_after_too_many_losses(self, session: Session) -> None:
        job = make_job(session)
        for attempt in (1, 2, 3):
            assert claim(session, job.id, owner="w1", lease_seconds=60) == Lease(job.id, attempt)
            expire(job)
            requeue_lost(session, job, max_attempts=3)
        assert job.status == JobStatus.FAILED
        assert job.error_code == "worker_lost"
        assert [e.level for e in log_of(session, job.id)] == [
            "info",
            "warn",
            "info",
            "warn",
            "info",
            "error",
        ]

    def test_rings_at_once(self, session: Session) -> None:
        job, _ = claimed(session, rung_at=utc_now())
        expire(job)
        requeue_lost(session, job, max_attempts=3)
        assert job.rung_at is None

    def test_leaves_a_job_whose_worker_has_spoken_again(self, session: Session) -> None:
        job, lease = claimed(session)
        expire(job)
        heartbeat(session, lease, lease_seconds=60)
        requeue_lost(session, job, max_attempts=3)
        assert job.status == JobStatus.RUNNING
        assert job.lost_leases == 0

    def test_leaves_a_job_that_has_ended_or_awaits_review(self, session: Session) -> None:
        ended, _ = claimed(session)
        succeed(session, ended)
        held, _ = claimed(session)
        held.stage, held.lease_expires_at = Stage.REVIEW, None
        for job in (ended, held):
            status = job.status
            requeue_lost(session, job, max_attempts=1)
            assert job.status == status


class TestEnds:
    def test_fail_keeps_code_sentence_and_facts(self, session: Session) -> None:
        job, _ = claimed(session)
        fail(session, job, code="bad", message="It broke.", param="file", data={"faulty_rows": 2})
        assert (job.error_code, job.error_message, job.error_param) == ("bad", "It broke.", "file")
        event = log_of(session, job.id)[-1]
        assert (event.level, event.data) == ("error", {"faulty_rows": 2, "code": "bad"})

    def test_cancel_works_at_every_living_status(self, session: Session) -> None:
        for status in sorted(set(JobStatus) - TERMINAL):
            job = make_job(session, status=status)
            cancel(session, job)
            assert job.status == JobStatus.CANCELLED
            assert job.finished_at is not None

    def test_a_refused_end_writes_no_event(self, session: Session) -> None:
        job, _ = claimed(session)
        succeed(session, job)
        before = job.event_count
        with pytest.raises(IllegalTransition, match="succeeded cannot become cancelled"):
            cancel(session, job)
        with pytest.raises(IllegalTransition):
            fail(session, job, code="late", message="Late.")
        assert job.event_count == before == len(log_of(session, job.id))
        assert job.error_code is None


class TestReview:
    def test_a_job_that_waits_for_a_person_has_no_lease_and_an_end(self, session: Session) -> None:
        job, lease = claimed(session)
        await_review(job, hours=2)
        assert job.awaits_review
        assert (job.lease_owner, job.lease_expires_at) == (None, None)
        assert job.held_at is not None
        assert job.review_expires_at == job.held_at + timedelta(hours=2)
        with pytest.raises(LeaseLost):
            hold(session, lease)

    @pytest.mark.parametrize("to", [JobStatus.QUEUED, JobStatus.RUNNING])
    def test_a_failed_job_comes_back_without_its_error(
        self, session: Session, to: JobStatus
    ) -> None:
        job, lease = claimed(session)
        fail(session, job, code="worker_lost", message="m", param="p")
        job.lost_leases = job.losses_in_a_row = 3
        reopen(job, to)
        assert (job.status, job.error_code, job.error_message) == (to, None, None)
        assert (job.error_param, job.finished_at) == (None, None)
        assert (job.lost_leases, job.losses_in_a_row) == (0, 0)
        if to == JobStatus.QUEUED:
            again = claim(session, job.id, owner="w2", lease_seconds=60)
            assert again == Lease(job.id, lease.attempt + 1)

    @pytest.mark.parametrize("status", [s for s in JobStatus if s != JobStatus.FAILED])
    def test_no_other_job_comes_back(self, session: Session, status: JobStatus) -> None:
        job = make_job(session, status=status)
        with pytest.raises(IllegalTransition):
            reopen(job, JobStatus.QUEUED)


class TestLockJob:
    def test_of_another_project_is_not_found(self, session: Session) -> None:
        job = make_job(session)
        other = make_project(session)
        assert lock_job(session, job.id, project_id=job.project_id) is job
        with pytest.raises(JobNotFound):
            lock_job(session, job.id, project_id=other.id)

    def test_forgets_what_the_session_knew(self, session: Session) -> None:
        job = make_job(session)
        session.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(suffix="changed elsewhere")
            .execution_options(synchronize_session=False)
        )
        assert lock_job(session, job.id).suffix == "changed elsewhere"


class TestTable:
    @pytest.mark.parametrize("facts", [{"status": "done"}, {"kind": "dance"}])
    def test_unknown_words_are_refused(self, session: Session, facts: dict[str, str]) -> None:
        with pytest.raises(IntegrityError):
            make_job(session, **facts)

    def test_a_replay_key_makes_one_job_for_each_project(self, session: Session) -> None:
        job = make_job(session, replay_key="k")
        make_job(session, replay_key="k")
        make_job(session, replay_key=None)
        with pytest.raises(IntegrityError):
            make_job(session, replay_key="k", project_id=job.project_id)


@pytest.fixture
def sessions(database_url: str) -> Iterator[SessionFactory]:
    """Sessions on a database of their own: threads see one another's commits."""
    engine = make_engine(database_url, pool_size=16)
    yield session_factory(engine)
    engine.dispose()


def at_once(actions: list[Callable[[], object]]) -> list[object]:
    """Run the actions in as many threads, all let go at the same moment; exceptions are results."""
    gate = threading.Barrier(len(actions))

    def run(action: Callable[[], object]) -> object:
        gate.wait()
        try:
            return action()
        except (LeaseLost, IllegalTransition) as error:
            return type(error)

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def stored_job(sessions: SessionFactory) -> str:
    with sessions.begin() as session:
        return make_job(session).id


def check_log(sessions: SessionFactory, job_id: str) -> None:
    with sessions() as session:
        numbers = [event.sequence for event in log_of(session, job_id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert session.get_one(Job, job_id).event_count == len(numbers)


class TestRaces:
    def test_of_many_claims_exactly_one_wins(self, sessions: SessionFactory) -> None:
        for _ in range(5):
            job_id = stored_job(sessions)

            def take(worker: int, job_id: str = job_id) -> Lease | None:
                with sessions.begin() as session:
                    return claim(session, job_id, owner=f"w{worker}", lease_seconds=60)

            won = at_once([lambda n=n: take(n) for n in range(8)])
            assert sorted(lease is not None for lease in won) == [False] * 7 + [True]
            check_log(sessions, job_id)

    def test_a_claim_waits_for_a_claim_that_is_undone(self, sessions: SessionFactory) -> None:
        job_id = stored_job(sessions)
        first = sessions()
        assert claim(first, job_id, owner="w1", lease_seconds=60) is not None

        def take() -> Lease | None:
            with sessions.begin() as session:
                return claim(session, job_id, owner="w2", lease_seconds=60)

        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(take)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.2)
            first.rollback()
            first.close()
            assert second.result(timeout=10) == Lease(job_id, 1)

    def test_events_from_many_threads_are_numbered_without_gaps(
        self, sessions: SessionFactory
    ) -> None:
        job_id = stored_job(sessions)

        def write() -> None:
            for _ in range(5):
                with sessions.begin() as session:
                    append_event(session, lock_job(session, job_id), "told")

        at_once([write] * 6)
        check_log(sessions, job_id)
        with sessions() as session:
            assert session.get_one(Job, job_id).event_count == 30

    def test_finish_and_cancel_meet_and_one_of_them_holds(self, sessions: SessionFactory) -> None:
        for _ in range(8):
            job_id = stored_job(sessions)
            with sessions.begin() as session:
                lease = claim(session, job_id, owner="w1", lease_seconds=60)
            assert lease is not None

            def finish(lease: Lease = lease) -> str:
                with sessions.begin() as session:
                    succeed(session, hold(session, lease))
                return JobStatus.SUCCEEDED

            def stop(job_id: str = job_id) -> str:
                with sessions.begin() as session:
                    cancel(session, lock_job(session, job_id))
                return JobStatus.CANCELLED

            results = at_once([finish, stop])
            assert results in (
                [JobStatus.SUCCEEDED, IllegalTransition],
                [LeaseLost, JobStatus.CANCELLED],
            )
            with sessions() as session:
                assert session.get_one(Job, job_id).status in results
            check_log(sessions, job_id)

    def test_a_sweep_and_a_late_heartbeat_meet_and_one_of_them_holds(
        self, sessions: SessionFactory
    ) -> None:
        for _ in range(8):
            job_id = stored_job(sessions)
            with sessions.begin() as session:
                lease = claim(session, job_id, owner="w1", lease_seconds=60)
                expire(lock_job(session, job_id))
            assert lease is not None

            def beat(lease: Lease = lease) -> str:
                with sessions.begin() as session:
                    heartbeat(session, lease, lease_seconds=60)
                return "beaten"

            def sweep(job_id: str = job_id) -> str:
                with sessions.begin() as session:
                    requeue_lost(session, lock_job(session, job_id), max_attempts=3)
                return "swept"

            spoken, _ = at_once([beat, sweep])
            with sessions() as session:
                job = session.get_one(Job, job_id)
                if spoken == "beaten":
                    assert (job.status, job.lost_leases) == (JobStatus.RUNNING, 0)
                else:
                    assert (spoken, job.status) == (LeaseLost, JobStatus.QUEUED)
            check_log(sessions, job_id)
