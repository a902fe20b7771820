"""A job's timeline, for every way that a job can end."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from api.dashboard.jobs.progress import Progress, StepState, latest_progress, read_timeline
from api.seed.states import seed_base, seed_job, seed_keys
from models.base import utc_now
from models.job import Job, JobStatus, Stage, append_event

DONE, CURRENT, STOPPED = StepState.DONE, StepState.CURRENT, StepState.STOPPED
PENDING, SKIPPED = StepState.PENDING, StepState.SKIPPED


def make_job(session: Session, status: JobStatus, stage: Stage | None) -> Job:
    project = seed_keys(session).other
    base = seed_base(session)
    return seed_job(session, project, name="ft:x", model=base.id, status=status, stage=stage)


@pytest.mark.parametrize(
    ("status", "stage", "states"),
    [
        (JobStatus.QUEUED, None, [PENDING, PENDING, PENDING, PENDING]),
        (JobStatus.RUNNING, Stage.TRAIN, [CURRENT, PENDING, PENDING, PENDING]),
        (JobStatus.RUNNING, Stage.GATE, [DONE, DONE, CURRENT, PENDING]),
        (JobStatus.RUNNING, Stage.REVIEW, [DONE, DONE, DONE, CURRENT]),
        (JobStatus.SUCCEEDED, Stage.GATE, [DONE, DONE, DONE, SKIPPED]),
        (JobStatus.SUCCEEDED, Stage.REVIEW, [DONE, DONE, DONE, DONE]),
        (JobStatus.FAILED, Stage.TRAIN, [STOPPED, SKIPPED, SKIPPED, SKIPPED]),
        (JobStatus.FAILED, Stage.GATE, [DONE, DONE, DONE, SKIPPED]),
        (JobStatus.FAILED, Stage.REVIEW, [DONE, DONE, DONE, DONE]),
        (JobStatus.FAILED, None, [SKIPPED, SKIPPED, SKIPPED, SKIPPED]),
        (JobStatus.CANCELLED, Stage.EVALUATE, [DONE, STOPPED, SKIPPED, SKIPPED]),
        (JobStatus.RUNNING, Stage.DATA_REVIEW, [CURRENT, PENDING, PENDING, PENDING, PENDING]),
        (JobStatus.FAILED, Stage.DATA_REVIEW, [DONE, SKIPPED, SKIPPED, SKIPPED, SKIPPED]),
        # A lost worker: what was reached stands, and the rest waits for the next one.
        (JobStatus.QUEUED, Stage.EVALUATE, [DONE, PENDING, PENDING, PENDING]),
    ],
)
def test_states(
    session: Session, status: JobStatus, stage: Stage | None, states: list[StepState]
) -> None:
    job = make_job(session, status, stage)
    assert [step.state for step in read_timeline(session, job, utc_now())] == states


def test_stage_lasts_until_the_next_begins(session: Session) -> None:
    job = make_job(session, JobStatus.RUNNING, Stage.EVALUATE)
    assert job.started_at is not None
    event = append_event(session, job, "Measuring.", data={"stage": Stage.EVALUATE})
    event.created_at = job.started_at + timedelta(seconds=90)
    session.flush()
    now = job.started_at + timedelta(seconds=100)
    train, evaluate, *_ = read_timeline(session, job, now)
    assert (train.seconds, evaluate.seconds) == (90, 10)


def test_newest_telling_counts_and_other_events_do_not(session: Session) -> None:
    job = make_job(session, JobStatus.RUNNING, Stage.TRAIN)
    for step in (1, 2):
        data = {"step": step, "total_steps": 8}
        append_event(session, job, "Step", type="metrics", data=data)
    append_event(
        session, job, "Something happened.", data={"stage": "train", "done": 7, "total": 8}
    )
    session.flush()
    assert latest_progress(session, [job.id]) == {job.id: Progress("train", 2, 8)}


def test_progress_never_exceeds_the_whole() -> None:
    assert Progress("train", 9, 8).percent == 100
    assert Progress("train", 0, 0).percent == 0
