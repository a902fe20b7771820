"""Where a job is: read from its events, which the worker writes as it goes.

A `metrics` event carries the step of training, a `progress` event what is done of another stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from models.job import REVIEWS, Job, JobEvent, JobStatus, Stage

MEASURED = ("metrics", "progress")


class StepState(StrEnum):
    """How far one stage of a job is."""

    DONE = "done"
    CURRENT = "current"
    #: The job ended here without finishing the stage.
    STOPPED = "stopped"
    PENDING = "pending"
    #: The job went past it, or ended before it.
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a stage is done."""

    stage: str
    done: int
    total: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Progress | None:
        """Read a `metrics` or `progress` event's data; nothing where it tells no progress."""
        match data:
            case {"stage": str(stage), "done": int(done), "total": int(total)}:
                return cls(stage, done, total)
            case {"step": int(step), "total_steps": int(total)}:
                return cls(str(data.get("stage") or Stage.TRAIN), step, total)
            case _:
                return None

    @property
    def percent(self) -> float:
        """The share, at most 100."""
        return min(100.0, 100.0 * self.done / self.total) if self.total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One stage of the way, with its times as far as they are known."""

    stage: Stage
    state: StepState
    started_at: datetime | None
    seconds: float | None
    progress: Progress | None


def latest_progress(session: Session, job_ids: Sequence[str]) -> dict[str, Progress]:
    """Give the newest progress of each job, in one query."""
    # From the end of each log: a running job's may be long.
    newest = (
        select(JobEvent.data)
        .where(JobEvent.job_id == Job.id, JobEvent.type.in_(MEASURED))
        .order_by(JobEvent.sequence.desc())
        .limit(1)
        .lateral()
    )
    rows = session.execute(
        select(Job.id, newest.c.data).join(newest, true()).where(Job.id.in_(job_ids))
    )
    found = ((job_id, Progress.of(data or {})) for job_id, data in rows)
    return {job_id: progress for job_id, progress in found if progress is not None}


def read_timeline(session: Session, job: Job, now: datetime) -> tuple[TimelineStep, ...]:
    """Give the stages of a job with what is known of each; screening and its review only where there was any."""
    started = _stage_starts(session, job)
    current = latest_progress(session, [job.id]).get(job.id)
    rare = {Stage.SCREEN, Stage.DATA_REVIEW}
    stages = [s for s in Stage if s not in rare or s in started or s == job.stage]
    reached = stages.index(Stage(job.stage)) if job.stage else -1
    steps = []
    for index, stage in enumerate(stages):
        state = _state(job, stage, index, reached)
        begin = started.get(stage)
        later = (started[s] for s in stages[index + 1 :] if s in started)
        end = next(later, job.finished_at) or (now if state is StepState.CURRENT else None)
        steps.append(
            TimelineStep(
                stage=stage,
                state=state,
                started_at=begin,
                seconds=(end - begin).total_seconds() if begin and end else None,
                progress=current
                if state is StepState.CURRENT and current and current.stage == stage
                else None,
            )
        )
    return tuple(steps)


def _stage_starts(session: Session, job: Job) -> dict[Stage, datetime]:
    stage = JobEvent.data["stage"].astext
    query = (
        select(stage, func.min(JobEvent.created_at))
        .where(JobEvent.job_id == job.id, stage.in_(list(Stage)))
        .group_by(stage)
    )
    starts = {Stage(name): first for name, first in session.execute(query)}
    if job.started_at is not None and Stage.SCREEN not in starts:
        starts[Stage.TRAIN] = job.started_at
    if job.stage == Stage.REVIEW:
        # The gate's own word is what hands a model to a person.
        verdict = select(func.max(JobEvent.created_at)).where(
            JobEvent.job_id == job.id, JobEvent.type == "moderation_checks"
        )
        decided_at = session.scalar(verdict)
        if decided_at is not None:
            starts[Stage.REVIEW] = decided_at
    return starts


def _state(job: Job, stage: Stage, index: int, reached: int) -> StepState:
    if index < reached or (index == reached and job.status == JobStatus.SUCCEEDED):
        return StepState.DONE
    if index > reached:
        return StepState.SKIPPED if job.is_terminal else StepState.PENDING
    if job.status == JobStatus.RUNNING:
        return StepState.CURRENT
    if job.is_terminal:
        # A blocked model is the gate's work done, not the gate's failure.
        was_decided = stage in {Stage.GATE, *REVIEWS} and job.status == JobStatus.FAILED
        return StepState.DONE if was_decided else StepState.STOPPED
    return StepState.PENDING
