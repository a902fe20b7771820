"""The workers: who is there, on what, at which job, and how fast that goes.

A job's pace and its canary are read from the ends of its log, so a long log costs no more than a short one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, true
from sqlalchemy.orm import Session

from api.dashboard.jobs.progress import MEASURED, Progress
from models.api_key import Project
from models.job import Job, JobEvent, JobStatus
from models.worker import Worker

MAX_WORKERS = 100
#: Events that a pace is taken over.
PACE_EVENTS = 12
#: Below this share of its first value a running job's canary is pointed out. Only for the eye: what ends a job is
#: the provider's `canary_stop`.
FALLEN_BELOW = 0.7


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a job's stage is, and how much of it a second brings."""

    progress: Progress
    unit: str
    per_second: float | None


@dataclass(frozen=True, slots=True)
class Canary:
    """Loss on held-out harmful rows: at the job's first step, and at the last measurement."""

    before: float
    now: float

    @property
    def share(self) -> float:
        """What is left of it."""
        return self.now / self.before if self.before else 1.0

    @property
    def has_fallen(self) -> bool:
        """Whether it should be looked at."""
        return self.share < FALLEN_BELOW


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """One worker and what it is at."""

    worker: Worker
    job: Job | None
    project_name: str
    pace: Pace | None
    canary: Canary | None

    @property
    def is_silent(self) -> bool:
        """Whether it is gone without a word."""
        return self.worker.stopped_at is None and not self.worker.is_alive

    @property
    def memory_percent(self) -> float | None:
        """The used share of the device's memory."""
        used, whole = self.worker.memory_used_bytes, self.worker.memory_bytes
        return min(100.0, 100.0 * used / whole) if whole and used is not None else None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers that are there, or should be. `stopped` ones said good-bye within the last day."""

    lines: tuple[WorkerLine, ...]
    stopped: int

    @property
    def alive(self) -> int:
        """How many are there."""
        return sum(line.worker.is_alive for line in self.lines)

    @property
    def silent(self) -> tuple[WorkerLine, ...]:
        """Those that should be there."""
        return tuple(line for line in self.lines if line.is_silent)

    @property
    def falling(self) -> tuple[WorkerLine, ...]:
        """Those at whose job the canary has fallen."""
        return tuple(line for line in self.lines if line.canary and line.canary.has_fallen)


def read_fleet(session: Session) -> Fleet:
    """Read all workers with their jobs."""
    workers = session.scalars(
        select(Worker).order_by(Worker.host, Worker.started_at, Worker.id).limit(MAX_WORKERS)
    ).all()
    here = [worker for worker in workers if worker.stopped_at is None]
    jobs = {
        job.id: (job, name)
        for job, name in session.execute(
            select(Job, Project.name)
            .join(Project, Project.id == Job.project_id)
            # What a worker says may be some seconds older than the job's end.
            .where(
                Job.id.in_([w.job_id for w in here if w.job_id]), Job.status == JobStatus.RUNNING
            )
        )
    }
    paces, canaries = _paces(session, list(jobs)), _canaries(session, list(jobs))
    lines = []
    for worker in here:
        job, project_name = jobs.get(worker.job_id or "", (None, ""))
        job_id = job.id if job is not None else ""
        lines.append(WorkerLine(worker, job, project_name, paces.get(job_id), canaries.get(job_id)))
    return Fleet(tuple(lines), stopped=len(workers) - len(here))


def _paces(session: Session, job_ids: Sequence[str]) -> dict[str, Pace]:
    if not job_ids:
        return {}
    newest = (
        select(JobEvent.sequence, JobEvent.created_at, JobEvent.data)
        .where(JobEvent.job_id == Job.id, JobEvent.type.in_(MEASURED))
        .order_by(JobEvent.sequence.desc())
        .limit(PACE_EVENTS)
        .lateral()
    )
    rows = session.execute(
        select(Job.id, newest.c.created_at, newest.c.data)
        .select_from(Job)
        .join(newest, true())
        .where(Job.id.in_(job_ids))
        .order_by(Job.id, newest.c.sequence.desc())
    )
    told: defaultdict[str, list[tuple[datetime, dict[str, Any]]]] = defaultdict(list)
    for job_id, at, data in rows:
        told[job_id].append((at, data or {}))
    paces = ((job_id, _pace(events)) for job_id, events in told.items())
    return {job_id: pace for job_id, pace in paces if pace is not None}


def _pace(events: Sequence[tuple[datetime, dict[str, Any]]]) -> Pace | None:
    """Read the pace of the stage that the newest event tells of; newest first."""
    at, data = events[0]
    latest = Progress.of(data)
    if latest is None:
        return None
    unit = "steps" if "step" in data else str(data.get("what") or "answers").lower()
    per_second = None
    for earlier, facts in events[1:]:
        before = Progress.of(facts)
        # What went before may be another stage, another set of answers or another attempt.
        if before is None or facts.get("what") != data.get("what"):
            break
        if before.stage != latest.stage or before.done > latest.done:
            break
        seconds = (at - earlier).total_seconds()
        if seconds > 0:
            per_second = (latest.done - before.done) / seconds
    return Pace(latest, unit, per_second or None)


def _canaries(session: Session, job_ids: Sequence[str]) -> dict[str, Canary]:
    if not job_ids:
        return {}
    loss = JobEvent.data["canary_loss"].astext
    measured = select(loss.label("loss")).where(
        JobEvent.job_id == Job.id, JobEvent.type == "metrics", loss.is_not(None)
    )
    first = measured.order_by(JobEvent.sequence).limit(1).lateral()
    last = measured.order_by(JobEvent.sequence.desc()).limit(1).lateral()
    rows = session.execute(
        select(Job.id, first.c.loss, last.c.loss)
        .select_from(Job)
        .join(first, true())
        .join(last, true())
        .where(Job.id.in_(job_ids))
    )
    return {job_id: Canary(float(before), float(now)) for job_id, before, now in rows}
