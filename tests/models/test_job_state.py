"""Any interleaving of two workers, an owner, a reviewer and the sweeper ends a job exactly once.

A Hypothesis state machine on a real PostgreSQL. Beside it runs a model in a few plain fields; after every
step the database must agree with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from models.base import utc_now
from models.job import (
    REVIEWS,
    TERMINAL,
    IllegalTransition,
    Job,
    JobEvent,
    JobStatus,
    Lease,
    LeaseLost,
    Stage,
    append_event,
    await_review,
    cancel,
    claim,
    fail,
    go_on,
    heartbeat,
    hold,
    keep_progress,
    lock_job,
    park,
    request_pause,
    requeue_lost,
    resume,
    succeed,
)
from models.session import SessionFactory, make_engine, session_factory
from tests.models.factories import make_job

MAX_ATTEMPTS = 3


class JobLife(RuleBasedStateMachine):
    """What each actor may try at any moment, stale leases included."""

    sessions: ClassVar[SessionFactory]
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        with self.sessions.begin() as session:
            self.job_id = make_job(session).id
        self.status = JobStatus.QUEUED
        self.attempt = 0
        self.losses = self.losses_in_a_row = self.furthest = 0
        self.is_in_review = False
        self.is_expired = False
        self.is_pausing = False
        self.events = 0

    def is_live(self, lease: Lease) -> bool:
        return (
            lease.job_id == self.job_id
            and self.status == JobStatus.RUNNING
            and lease.attempt == self.attempt
            and not self.is_in_review
        )

    def end(self, status: JobStatus) -> None:
        self.status = status
        self.is_in_review = self.is_expired = self.is_pausing = False
        self.events += 1

    @initialize(target=leases, losses=st.integers(0, MAX_ATTEMPTS - 1))
    def has_a_past(self, losses: int) -> MultipleResults[Lease]:
        # Left to chance, most lives would end before a second worker ever came.
        given = []
        for _ in range(losses):
            given.append(self.claims("w1"))
            self.loses_its_worker()
        return multiple(*given)

    @rule(target=leases, worker=st.sampled_from(["w1", "w2"]))
    def claims(self, worker: str) -> Lease:
        with self.sessions.begin() as session:
            lease = claim(session, self.job_id, owner=worker, lease_seconds=60)
        if self.status != JobStatus.QUEUED:
            assert lease is None
            return multiple()  # type: ignore[return-value]
        self.attempt += 1
        self.events += 1
        self.status = JobStatus.RUNNING
        assert lease == Lease(self.job_id, self.attempt)
        return lease

    @rule(lease=leases)
    def beats(self, lease: Lease) -> None:
        if not self.is_live(lease):
            with pytest.raises(LeaseLost), self.sessions.begin() as session:
                heartbeat(session, lease, lease_seconds=60)
            return
        with self.sessions.begin() as session:
            heartbeat(session, lease, lease_seconds=60)
        self.is_expired = False

    @rule(lease=leases, stage=st.sampled_from([Stage.TRAIN, Stage.EVALUATE, Stage.GATE]))
    def writes(self, lease: Lease, stage: Stage) -> None:
        if not self.is_live(lease):
            with pytest.raises(LeaseLost), self.sessions.begin() as session:
                append_event(session, hold(session, lease), "Written by nobody.")
            return
        with self.sessions.begin() as session:
            job = hold(session, lease)
            job.stage = stage
            append_event(session, job, "Progress.", type="metrics", data={"loss": 1.5})
        self.events += 1

    @rule(lease=leases)
    def is_undone_halfway(self, lease: Lease) -> None:
        if not self.is_live(lease):
            return
        with self.sessions() as session:
            succeed(session, hold(session, lease))
            session.flush()
            session.rollback()

    @rule(lease=leases, is_good=st.booleans())
    def finishes(self, lease: Lease, is_good: bool) -> None:
        if not self.is_live(lease):
            with pytest.raises(LeaseLost), self.sessions.begin() as session:
                succeed(session, hold(session, lease))
            return
        with self.sessions.begin() as session:
            job = hold(session, lease)
            if is_good:
                succeed(session, job)
            else:
                fail(session, job, code="harmful_score_exceeded", message="Too harmful.")
        self.end(JobStatus.SUCCEEDED if is_good else JobStatus.FAILED)

    @rule(lease=leases, stage=st.sampled_from(sorted(REVIEWS)))
    def is_held_for_review(self, lease: Lease, stage: Stage) -> None:
        if not self.is_live(lease):
            return
        with self.sessions.begin() as session:
            job = hold(session, lease)
            await_review(job, hours=1, stage=stage)
            append_event(session, job, "Held.", level="warn")
        self.is_in_review, self.is_expired, self.is_pausing = True, False, False
        self.losses_in_a_row = 0
        self.events += 1

    @rule(is_meant=st.booleans())
    def is_to_pause(self, is_meant: bool) -> None:
        if not is_meant:
            return
        is_possible = self.status == JobStatus.QUEUED or (
            self.status == JobStatus.RUNNING and not (self.is_pausing or self.is_in_review)
        )
        if not is_possible:
            with pytest.raises(IllegalTransition), self.sessions.begin() as session:
                request_pause(session, lock_job(session, self.job_id))
            return
        with self.sessions.begin() as session:
            request_pause(session, lock_job(session, self.job_id))
        self.events += 1
        if self.status == JobStatus.QUEUED:
            self.status = JobStatus.PAUSED
        else:
            self.is_pausing = True

    @rule(lease=leases)
    def is_laid_down(self, lease: Lease) -> None:
        if not self.is_live(lease):
            with pytest.raises(LeaseLost), self.sessions.begin() as session:
                park(session, hold(session, lease))
            return
        with self.sessions.begin() as session:
            park(session, hold(session, lease))
        self.end(JobStatus.PAUSED if self.is_pausing else JobStatus.QUEUED)

    @rule()
    def is_resumed(self) -> None:
        if not (self.is_pausing or self.status == JobStatus.PAUSED):
            with pytest.raises(IllegalTransition), self.sessions.begin() as session:
                resume(session, lock_job(session, self.job_id))
            return
        with self.sessions.begin() as session:
            resume(session, lock_job(session, self.job_id))
        self.events += 1
        if self.is_pausing:
            self.is_pausing = False
        else:
            self.status = JobStatus.QUEUED

    @rule(lease=leases, step=st.integers(1, 3))
    def keeps_progress(self, lease: Lease, step: int) -> None:
        if not self.is_live(lease):
            return
        with self.sessions.begin() as session:
            keep_progress(hold(session, lease), step)
        if step > self.furthest:
            self.furthest = step
            self.losses_in_a_row = 0

    @precondition(lambda self: self.is_in_review)
    @rule(is_released=st.booleans())
    def is_reviewed(self, is_released: bool) -> None:
        with self.sessions.begin() as session:
            job = lock_job(session, self.job_id)
            assert job.awaits_review
            if is_released:
                succeed(session, job)
            else:
                fail(session, job, code="review_rejected", message="Rejected.")
        self.end(JobStatus.SUCCEEDED if is_released else JobStatus.FAILED)

    @precondition(lambda self: self.is_in_review)
    @rule()
    def is_sent_on(self) -> None:
        with self.sessions.begin() as session:
            go_on(session, lock_job(session, self.job_id), stage=Stage.TRAIN)
        self.end(JobStatus.QUEUED)

    @rule(is_meant=st.sampled_from([False, False, False, True]))
    def is_cancelled(self, is_meant: bool) -> None:
        if not is_meant:
            return
        if self.status in TERMINAL:
            with pytest.raises(IllegalTransition), self.sessions.begin() as session:
                cancel(session, lock_job(session, self.job_id))
            return
        with self.sessions.begin() as session:
            cancel(session, lock_job(session, self.job_id))
        self.end(JobStatus.CANCELLED)

    @precondition(lambda self: self.status in TERMINAL)
    @rule()
    def makes_way_for_another(self) -> None:
        # Leases of the job before stay in the bundle, as stale as a lease can be.
        self.agrees_with_the_model()
        self.begin()

    @rule()
    def loses_its_worker(self) -> None:
        self.falls_silent()
        self.is_swept()

    @rule()
    def falls_silent(self) -> None:
        with self.sessions.begin() as session:
            job = lock_job(session, self.job_id)
            if job.lease_expires_at is not None:
                job.lease_expires_at = utc_now() - timedelta(seconds=1)
                self.is_expired = True

    @rule()
    def is_swept(self) -> None:
        with self.sessions.begin() as session:
            requeue_lost(session, lock_job(session, self.job_id), max_attempts=MAX_ATTEMPTS)
        if not self.is_expired:
            return
        self.losses += 1
        self.losses_in_a_row += 1
        left = JobStatus.PAUSED if self.is_pausing else JobStatus.QUEUED
        self.end(JobStatus.FAILED if self.losses_in_a_row == MAX_ATTEMPTS else left)

    @invariant()
    def agrees_with_the_model(self) -> None:
        with self.sessions() as session:
            for attempt in range(1, self.attempt + 1):
                lease = Lease(self.job_id, attempt)
                if not self.is_live(lease):
                    with pytest.raises(LeaseLost):
                        hold(session, lease)
            job = session.get_one(Job, self.job_id)
            events = list(
                session.scalars(
                    select(JobEvent)
                    .where(JobEvent.job_id == self.job_id)
                    .order_by(JobEvent.sequence)
                )
            )
        assert job.status == self.status
        assert job.attempt == self.attempt
        assert (job.lost_leases, job.losses_in_a_row) == (self.losses, self.losses_in_a_row)
        assert job.awaits_review == self.is_in_review
        assert job.is_pausing == self.is_pausing
        assert job.state == ("pausing" if self.is_pausing else self.status)
        assert job.wire_status != JobStatus.PAUSED
        assert [event.sequence for event in events] == list(range(1, self.events + 1))
        assert job.event_count == self.events
        has_worker = self.status == JobStatus.RUNNING and not self.is_in_review
        assert (job.lease_owner is not None) == has_worker
        assert (job.lease_expires_at is not None) == has_worker
        assert (job.finished_at is not None) == (self.status in TERMINAL)
        assert (job.error_code is not None) == (self.status == JobStatus.FAILED)
        ends = [event for event in events if is_end(event)]
        assert len(ends) == (self.status in TERMINAL)
        assert not ends or ends == [events[-1]]

    def teardown(self) -> None:
        """Let the job come to its end: whatever has happened, a worker or a reviewer can end it."""
        if self.is_in_review:
            self.is_reviewed(is_released=True)
        if self.status == JobStatus.PAUSED:
            self.is_resumed()
        if self.status == JobStatus.RUNNING:
            self.finishes(Lease(self.job_id, self.attempt), is_good=True)
        if self.status == JobStatus.QUEUED:
            self.finishes(self.claims("w1"), is_good=True)
        assert self.status in TERMINAL
        self.agrees_with_the_model()


def is_end(event: JobEvent) -> bool:
    return event.level == "error" or event.message in (
        "The job has successfully completed.",
        "Job cancelled.",
    )


@pytest.fixture
def sessions(database_url: str) -> Iterator[SessionFactory]:
    engine = make_engine(database_url)
    yield session_factory(engine)
    engine.dispose()


def test_every_interleaving_ends_once(sessions: SessionFactory) -> None:
    JobLife.sessions = sessions
    run_state_machine_as_test(
        JobLife,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
