"""Jobs: one row, one state machine, an append-only event log.

    validating_files ──► queued ──► running ──► succeeded
                         │  │  ▲       │  ├───► failed
                         │  │  └───────┤  └───► cancelled
                         │  └► paused ◄┘
                         └──► cancelled, failed

`running → queued` happens when a lease runs out, or when a person releases training data. While data or a model
waits for a person the job stays `running` in stage `data_review` or `review`, with no lease, for no worker holds it.
A person can `reopen` a failed job whose model is there: for review again, or to be evaluated again. Nothing else
brings an ended job back.

A queued job is paused at once. Of a running one the pause is a wish, `pause_requested_at`, until its worker
has written a checkpoint and let go; whoever locks the row before that may still withdraw the wish (`resume`),
or cancel. `paused → queued` is `resume`, or `paused → cancelled`: nothing else wakes a paused job.

A worker owns a job by `Lease`: the job's id and the attempt it claimed. Everything it writes goes through
`hold`, which finds the row only while that attempt still runs. So a cancel needs no flag and a worker that
was thought dead can do no harm: its lease is simply gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    UniqueConstraint,
    and_,
    func,
    select,
    text,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, new_id, utc_now
from models.errors import Conflict, NotFound
from models.tracing import traceparent

#: Type of the event after which a model is measured anew, whatever was measured before.
REEVALUATION = "reevaluation"


class JobNotFound(NotFound):
    """No such job."""

    code = "job_not_found"


class IllegalTransition(Conflict):
    """The job's status does not allow this."""

    code = "illegal_transition"


class LeaseLost(Exception):
    """The job was cancelled, or another worker has it: stop, and write nothing."""


class PauseRequested(Exception):
    """The job's owner wants it to pause: stop where it can be gone on from, then `park` it."""


class JobKind(StrEnum):
    """What a job makes: a version, or, of a version, a certificate or an evaluation."""

    ALIGN = "align"
    FINETUNE = "finetune"
    CERTIFY = "certify"
    EVALUATE = "evaluate"


class JobStatus(StrEnum):
    """OpenAI's words, so that every existing client understands them.

    `paused` is not among those that its clients take for a status: `Job.wire_status` says another.
    """

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    """Where a running job is; only jobs whose training file is screened go through the first two."""

    SCREEN = "screen"
    DATA_REVIEW = "data_review"
    TRAIN = "train"
    EVALUATE = "evaluate"
    GATE = "gate"
    REVIEW = "review"


#: In these a running job waits for a person.
REVIEWS = frozenset({Stage.DATA_REVIEW, Stage.REVIEW})
TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
ALLOWED_TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset(
        {JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.QUEUED: frozenset(
        {JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.RUNNING: TERMINAL | {JobStatus.QUEUED, JobStatus.PAUSED},
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class Job(Base):
    """One piece of GPU work."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("kind in ('align', 'certify', 'evaluate', 'finetune')", name="kind"),
        CheckConstraint(
            "status in ('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled', "
            "'paused')",
            name="status",
        ),
        Index("ix_jobs_project_id_created_at_id", "project_id", "created_at", "id"),
        Index("ix_jobs_created_at_id", "created_at", "id"),
        # The dashboard's list, newest first by one of these; LIKE with a fixed beginning needs its own order.
        Index("ix_jobs_status_created_at_id", "status", "created_at", "id"),
        Index("ix_jobs_kind_created_at_id", "kind", "created_at", "id"),
        Index("ix_jobs_model_id_created_at_id", "model_id", "created_at", "id"),
        Index(
            "ix_jobs_result_model_id_beginning",
            "result_model_id",
            postgresql_ops={"result_model_id": "text_pattern_ops"},
        ),
        Index("ix_jobs_suffix_beginning", "suffix", postgresql_ops={"suffix": "text_pattern_ops"}),
        Index("ix_jobs_status_lease_expires_at", "status", "lease_expires_at"),
        Index("ix_jobs_replay", "project_id", "replay_key", unique=True),
        # What a claim looks at (models.fair_queue), and what a month's use is summed over.
        Index(
            "ix_jobs_unfinished",
            "project_id",
            "status",
            "created_at",
            "id",
            postgresql_where=text("finished_at is null"),
        ),
        Index("ix_jobs_project_id_claimed_at", "project_id", "claimed_at"),
        Index("ix_jobs_project_id_finished_at", "project_id", "finished_at"),
        # What the overview asks for: who waits for a person, what ended lately, what failed of which fault.
        Index(
            "ix_jobs_in_review",
            "held_at",
            "id",
            postgresql_where=text("status = 'running' and stage in ('data_review', 'review')"),
        ),
        Index("ix_jobs_finished_at_status_error_code", "finished_at", "status", "error_code"),
        Index(
            "ix_jobs_error_code_finished_at",
            "error_code",
            "finished_at",
            postgresql_where=text("error_code is not null"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ftjob"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(default=JobStatus.QUEUED)
    stage: Mapped[str | None]

    #: The version to start from, and the name of the one that the job makes (certify, evaluate: the same one).
    model_id: Mapped[str] = mapped_column(ForeignKey("model_versions.id"))
    result_model_id: Mapped[str]
    training_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    result_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    suffix: Mapped[str | None]
    seed: Mapped[int]
    #: A `Recipe`: every hyper-parameter, with "auto" resolved. Of a certify job: a `CertificationPlan`; of an
    #: evaluate job nothing, for it measures as the job did that made the model.
    recipe: Mapped[dict[str, Any]]
    #: Named apart from the class's own `metadata`.
    tags: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    #: Where the training curve goes as well: `models.integrations` has the forms.
    integrations: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    #: A client's Idempotency-Key: the same key makes no second job.
    replay_key: Mapped[str | None]
    #: Hash of the request body: a client that timed out sends it again, and means the same job.
    request_sha256: Mapped[str | None] = mapped_column(index=True)

    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    estimated_finish: Mapped[datetime | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]

    attempt: Mapped[int] = mapped_column(default=0)
    #: How many of the attempts ended because a worker fell silent, and how many since the job last got further.
    lost_leases: Mapped[int] = mapped_column(default=0)
    losses_in_a_row: Mapped[int] = mapped_column(default=0, server_default="0")
    #: The last step of which an attempt has kept a checkpoint to go on from.
    furthest_step: Mapped[int] = mapped_column(default=0, server_default="0")
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    #: When a worker last took the job.
    claimed_at: Mapped[datetime | None]
    #: Seconds for which workers held the job, over all attempts that are over.
    gpu_seconds: Mapped[float] = mapped_column(default=0.0)
    #: When the doorbell was last rung; the sweeper rings again for jobs nobody took.
    rung_at: Mapped[datetime | None]
    #: Since when the job's data or model waits for a person, or last did, and until when.
    held_at: Mapped[datetime | None]
    review_expires_at: Mapped[datetime | None]
    #: The owner's wish that the worker has not yet fulfilled.
    pause_requested_at: Mapped[datetime | None]
    event_count: Mapped[int] = mapped_column(default=0)
    #: The span that made the job, as W3C's `traceparent`, where requests are traced. The doorbell cannot carry it:
    #: who hears it need not take the job that it was rung for.
    traceparent: Mapped[str | None] = mapped_column(default=traceparent)

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can happen to the job any more."""
        return self.status in TERMINAL

    @property
    def awaits_review(self) -> bool:
        """Whether the job's training data or its model is held for a person."""
        return self.status == JobStatus.RUNNING and self.stage in REVIEWS

    @property
    def is_pausing(self) -> bool:
        """Whether a worker has the job and is to let go of it."""
        return (
            self.status == JobStatus.RUNNING
            and self.pause_requested_at is not None
            and not self.awaits_review
        )

    @property
    def state(self) -> str:
        """The status in our own words: `pausing` and `paused` among them."""
        return "pausing" if self.is_pausing else self.status

    @property
    def wire_status(self) -> str:
        """The status in words that every client of OpenAI's takes: a paused job waits, as a queued one does."""
        return JobStatus.QUEUED if self.status == JobStatus.PAUSED else self.status


class JobEvent(Base):
    """One line of a job's log. `sequence` counts from 1 without gaps."""

    __tablename__ = "job_events"
    __table_args__ = (UniqueConstraint("job_id", "sequence"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ftevent"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    sequence: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    level: Mapped[str] = mapped_column(default="info")
    #: `message`, `metrics` or `moderation_checks`.
    type: Mapped[str] = mapped_column(default="message")
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on a job: worth something only while that attempt runs."""

    job_id: str
    attempt: int
    #: What whoever carries the job tells of it, beside what the lease is about.
    kind: str = field(default="", compare=False)
    traceparent: str | None = field(default=None, compare=False)


def lock_job(session: Session, job_id: str, *, project_id: str | None = None) -> Job:
    """Give the job with its row locked until the transaction ends.

    Raises:
        JobNotFound: it is absent, or another project's (when a project is named).
    """
    query = select(Job).where(Job.id == job_id).with_for_update()
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    job = session.scalar(query.execution_options(populate_existing=True))
    if job is None:
        raise JobNotFound(f"No job {job_id[:64]!r} in this project.", param="fine_tuning_job_id")
    return job


def move(job: Job, to: JobStatus, *, now: datetime | None = None) -> None:
    """Change the status. The only place that does, and only as `ALLOWED_TRANSITIONS` says.

    Raises:
        IllegalTransition: the table does not allow it.
    """
    if to not in ALLOWED_TRANSITIONS[JobStatus(job.status)]:
        raise IllegalTransition(f"A job that is {job.status} cannot become {to}.")
    now = now or utc_now()
    job.status = to
    if to != JobStatus.RUNNING:
        release_lease(job, now=now)
        job.review_expires_at = job.pause_requested_at = None
        job.estimated_finish = None
    if to in TERMINAL:
        job.finished_at = now


def release_lease(job: Job, *, now: datetime | None = None) -> None:
    """Let the worker go, and add the time that it had the job; a silent one's ends with its lease."""
    if job.claimed_at is not None and job.lease_expires_at is not None:
        end = min(now or utc_now(), job.lease_expires_at)
        job.gpu_seconds = (job.gpu_seconds or 0.0) + max(
            (end - job.claimed_at).total_seconds(), 0.0
        )
    job.lease_owner = job.lease_expires_at = None


def append_event(
    session: Session,
    job: Job,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: Mapping[str, Any] | None = None,
) -> JobEvent:
    """Add a line to the log. The caller holds the job's row lock, which keeps the numbers contiguous."""
    job.event_count += 1
    event = JobEvent(
        job_id=job.id,
        sequence=job.event_count,
        level=level,
        type=type,
        message=message,
        data=dict(data) if data is not None else None,
    )
    session.add(event)
    return event


def claim(session: Session, job_id: str, *, owner: str, lease_seconds: int) -> Lease | None:
    """Take a queued job by compare-and-set; None when it is not there to be taken."""
    now = utc_now()
    attempt = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.status == JobStatus.QUEUED)
        .values(
            status=JobStatus.RUNNING,
            attempt=Job.attempt + 1,
            lease_owner=owner,
            lease_expires_at=now + timedelta(seconds=lease_seconds),
            claimed_at=now,
        )
        .returning(Job.attempt)
        .execution_options(synchronize_session=False)
    )
    if attempt is None:
        return None
    job = lock_job(session, job_id)
    if job.started_at is None:
        job.started_at = now
    append_event(
        session, job, "Job started." if attempt == 1 else f"Job resumed (attempt {attempt})."
    )
    return Lease(job_id, attempt, kind=job.kind, traceparent=job.traceparent)


def hold(session: Session, lease: Lease, *, to_write: bool = True) -> Job:
    """Give the leased job, its row locked, for the worker to write to, or only to look at.

    Raises:
        LeaseLost: the job was cancelled, or a later attempt runs.
    """
    query = select(Job).where(
        Job.id == lease.job_id,
        Job.attempt == lease.attempt,
        Job.status == JobStatus.RUNNING,
    )
    if to_write:
        query = query.with_for_update()
    job = session.scalar(query.execution_options(populate_existing=True))
    if job is None or job.awaits_review:
        raise LeaseLost
    return job


def heartbeat(session: Session, lease: Lease, *, lease_seconds: int) -> Job:
    """Extend the lease, and give the job, its row locked.

    Raises:
        LeaseLost: the job was cancelled, or a later attempt runs.
    """
    job = hold(session, lease)
    job.lease_expires_at = utc_now() + timedelta(seconds=lease_seconds)
    return job


def request_pause(session: Session, job: Job) -> None:
    """Pause at the owner's wish: a queued job at once, a running one at its worker's next step.

    Raises:
        IllegalTransition: the job has ended, is paused or pausing already, or waits for a person.
    """
    if job.status == JobStatus.RUNNING:
        if job.is_pausing or job.awaits_review:
            state = "pausing already" if job.is_pausing else "held for a person"
            raise IllegalTransition(f"A job that is {state} cannot be paused.")
        job.pause_requested_at = utc_now()
        append_event(session, job, "Pause requested: the worker stops at its next step.")
        return
    move(job, JobStatus.PAUSED)
    append_event(session, job, "Job paused.")


def park(session: Session, job: Job) -> None:
    """Let go of a job that was to pause: its worker has written down what it needs to go on."""
    if job.is_pausing:
        move(job, JobStatus.PAUSED)
        append_event(session, job, "Job paused.", data={"stage": job.stage})
        return
    # The wish was withdrawn when the worker had already stopped.
    _queue_again(job)
    append_event(session, job, "Job is queued again.", data={"stage": job.stage})


def resume(session: Session, job: Job) -> None:
    """Go on at the owner's wish: a paused job is queued, a wish to pause is withdrawn.

    Raises:
        IllegalTransition: the job is neither paused nor about to be.
    """
    if job.is_pausing:
        job.pause_requested_at = None
        append_event(session, job, "The pause was withdrawn.")
        return
    if job.status != JobStatus.PAUSED:
        raise IllegalTransition(f"A job that is {job.status} cannot be resumed.")
    _queue_again(job)
    append_event(session, job, "Job is queued again.")


def _queue_again(job: Job) -> None:
    move(job, JobStatus.QUEUED)
    job.rung_at = None


def succeed(session: Session, job: Job) -> None:
    """End well: the model was released, certified or measured."""
    move(job, JobStatus.SUCCEEDED)
    append_event(session, job, "The job has successfully completed.")


def blocked_message(kind: str, reasons: Iterable[str]) -> str:
    """Say that the gate blocked what a job made, and what its owner can do."""
    advice = (
        "Align again with another method, more steps or a safety set that covers what it answers."
        if kind == JobKind.ALIGN
        else "Remove harmful rows from the training file and submit it again."
    )
    return f"The model was blocked. {' '.join(reasons)} {advice}"


def fail(
    session: Session,
    job: Job,
    *,
    code: str,
    message: str,
    param: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """End badly, with a code for programs, a sentence for people, and facts for the event."""
    move(job, JobStatus.FAILED)
    job.error_code, job.error_message, job.error_param = code, message, param
    append_event(session, job, message, level="error", data={**(data or {}), "code": code})


def cancel(session: Session, job: Job) -> None:
    """End at the owner's wish, whatever the job was doing.

    Raises:
        IllegalTransition: the job has ended already.
    """
    move(job, JobStatus.CANCELLED)
    append_event(session, job, "Job cancelled.", level="warn")


def awaiting_review() -> ColumnElement[bool]:
    """Give the condition that selects what `Job.awaits_review` is true of."""
    return and_(Job.status == JobStatus.RUNNING, Job.stage.in_(REVIEWS))


def await_review(job: Job, *, hours: float, stage: Stage = Stage.REVIEW) -> None:
    """Let a running job wait for a person, for so long; no worker holds it meanwhile."""
    now = utc_now()
    job.stage = stage
    job.losses_in_a_row = 0
    release_lease(job, now=now)
    job.estimated_finish = None
    job.held_at, job.review_expires_at = now, now + timedelta(hours=hours)


def go_on(session: Session, job: Job, *, stage: Stage) -> None:
    """Queue a job that waited for a person, to be gone on with at a stage."""
    _queue_again(job)
    job.stage = stage
    append_event(session, job, "Job is queued again.")


def reopen(job: Job, to: JobStatus) -> None:
    """Bring a failed job back: `queued`, for its model to be evaluated again, or `running`, for review.

    Raises:
        IllegalTransition: the job has not failed.
    """
    if job.status != JobStatus.FAILED:
        raise IllegalTransition(f"A job that is {job.status} cannot be opened again.")
    job.status = to
    job.finished_at = job.rung_at = None
    job.error_code = job.error_message = job.error_param = None
    job.lost_leases = job.losses_in_a_row = 0


def last_reevaluation(session: Session, job_id: str) -> int:
    """Give the number of the event by which a person last asked for a new evaluation; 0 for none."""
    asked = select(func.max(JobEvent.sequence)).where(
        JobEvent.job_id == job_id, JobEvent.type == REEVALUATION
    )
    return session.scalar(asked) or 0


def keep_progress(job: Job, step: int | None = None) -> None:
    """Say that something is kept which the next attempt need not do again.

    A job that gets further with each worker is not given up, however many are taken from it.

    Args:
        job: its row, locked.
        step: of a checkpoint. Only one further than any before counts: training that begins anew each time is given up.
    """
    if step is not None:
        if step <= job.furthest_step:
            return
        job.furthest_step = step
    job.losses_in_a_row = 0


def requeue_lost(session: Session, job: Job, *, max_attempts: int) -> None:
    """Give a job whose lease ran out to the next worker, or give up after too many losses in a row.

    Does nothing to any other job: between being found and being locked, a worker may have spoken again.
    """
    if job.lease_expires_at is None or job.lease_expires_at > utc_now():
        return
    job.lost_leases += 1
    job.losses_in_a_row += 1
    if job.losses_in_a_row >= max_attempts:
        fail(
            session,
            job,
            code="worker_lost",
            message=(
                f"The worker fell silent {job.losses_in_a_row} times and the job got no further; it was given up."
            ),
        )
        return
    if job.is_pausing:
        move(job, JobStatus.PAUSED)
        append_event(session, job, "The worker fell silent; the job is paused.", level="warn")
        return
    _queue_again(job)
    append_event(session, job, "The worker fell silent; the job was queued again.", level="warn")
