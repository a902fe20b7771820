"""The list of jobs: which ones a viewer sees, in which order, and what a line says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import Row, Select, func, or_, select, tuple_
from sqlalchemy.orm import Session

from api.dashboard.jobs.progress import Progress, latest_progress
from api.dashboard.measures import Measure, harmful_score
from api.registry.safety import latest_evaluations, measured_by
from models.api_key import Project
from models.base import utc_now
from models.evaluation import Evaluation
from models.job import TERMINAL, Job, JobKind, JobNotFound, JobStatus, awaiting_review
from models.model_version import Gate, ModelVersion
from models.policy import PolicyRules, current_policy
from models.rate import Rate

PAGE_SIZE = 50
#: Of what waits for a person; the review queue has the rest.
MAX_HELD_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Filters:
    """What to show; none means all."""

    status: JobStatus | None = None
    gate: Gate | None = None
    kind: JobKind | None = None
    #: A project's id or name.
    tenant: str | None = None
    #: The model that a job starts from.
    base: str | None = None
    #: A job's id, or how the made model's name or the customer's suffix begins.
    search: str | None = None
    #: Days, both included.
    since: date | None = None
    until: date | None = None
    #: A job's id: show the jobs older than it.
    before: str | None = None


@dataclass(frozen=True, slots=True)
class JobLine:
    """One line of the list."""

    job: Job
    project_name: str
    version: ModelVersion | None
    harmful_score: Measure | None
    fine_tuning_accuracy: Rate | None
    progress: Progress | None

    @property
    def method(self) -> str:
        """The method that trains, as stored in the recipe; of a certification the plan."""
        if self.job.kind == JobKind.CERTIFY:
            return str(self.job.recipe.get("name", ""))
        return str(self.job.recipe.get("method", {}).get("name", ""))

    @property
    def seconds(self) -> float | None:
        """How long the job has run, or ran."""
        return running_seconds(self.job, utc_now())


@dataclass(frozen=True, slots=True)
class JobList:
    """A page of the list."""

    #: Those that wait for a person, the soonest to expire first; of many the first few.
    held: tuple[JobLine, ...]
    held_total: int
    lines: tuple[JobLine, ...]
    #: Of the jobs that have not ended; ended ones are too many to count at every look.
    counts: dict[str, int]
    #: The id to go on from, when there are older jobs.
    next_before: str | None
    #: Whether the viewer may see any job at all, whatever the filters.
    is_empty: bool


def running_seconds(job: Job, now: datetime) -> float | None:
    """Give the time from the first claim to the end, or to now."""
    if job.started_at is None:
        return None
    return ((job.finished_at or now) - job.started_at).total_seconds()


def list_jobs(session: Session, project_id: str | None, filters: Filters) -> JobList:
    """Give a page of jobs, newest first, and those that wait for a person.

    Args:
        session: an open session.
        project_id: the only project to show, or None for all.
        filters: what to show.
    """
    visible = _visible(project_id)
    query = _filtered(session, visible, filters)
    if filters.before:
        at = session.execute(
            visible.with_only_columns(Job.created_at, Job.id).where(Job.id == filters.before)
        ).one_or_none()
        if at is None:
            raise JobNotFound
        query = query.where(tuple_(Job.created_at, Job.id) < tuple_(at.created_at, at.id))
    rows = session.execute(
        query.order_by(Job.created_at.desc(), Job.id.desc()).limit(PAGE_SIZE + 1)
    ).all()
    held = session.execute(
        visible.where(awaiting_review())
        .order_by(Job.review_expires_at, Job.id)
        .limit(MAX_HELD_SHOWN)
    ).all()
    lines = _lines(session, rows[:PAGE_SIZE])
    return JobList(
        held=_lines(session, held),
        held_total=count_held(session, project_id),
        lines=lines,
        counts=_count_unfinished(session, project_id),
        next_before=lines[-1].job.id if len(rows) > PAGE_SIZE else None,
        is_empty=not lines and session.execute(visible.limit(1)).first() is None,
    )


def _filtered(
    session: Session, visible: Select[Job, str, ModelVersion], filters: Filters
) -> Select[Job, str, ModelVersion]:
    for column, wanted in (
        (Job.status, filters.status),
        (Job.kind, filters.kind),
        (Job.model_id, filters.base),
        (ModelVersion.gate, filters.gate),
    ):
        if wanted:
            visible = visible.where(column == wanted)
    if filters.tenant:
        # Looked up first, so that the plan knows of one project and takes its index.
        found = session.scalars(
            select(Project.id).where(
                or_(Project.id == filters.tenant, Project.name == filters.tenant)
            )
        ).all()
        visible = visible.where(Job.project_id.in_(found))
    if filters.search:
        visible = visible.where(
            or_(
                Job.id == filters.search,
                Job.result_model_id.startswith(filters.search, autoescape=True),
                Job.suffix.startswith(filters.search, autoescape=True),
            )
        )
    if filters.since:
        visible = visible.where(Job.created_at >= _midnight(filters.since))
    if filters.until:
        visible = visible.where(Job.created_at < _midnight(filters.until + timedelta(days=1)))
    return visible


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _visible(project_id: str | None) -> Select[Job, str, ModelVersion]:
    query = (
        select(Job, Project.name, ModelVersion)
        .join(Project, Project.id == Job.project_id)
        .outerjoin(ModelVersion, ModelVersion.job_id == Job.id)
    )
    return query if project_id is None else query.where(Job.project_id == project_id)


def _count_unfinished(session: Session, project_id: str | None) -> dict[str, int]:
    query = select(Job.status, func.count()).where(Job.finished_at.is_(None)).group_by(Job.status)
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    found = dict(session.execute(query).all())
    return {status: found.get(status, 0) for status in JobStatus if status not in TERMINAL}


def count_held(session: Session, project_id: str | None = None) -> int:
    """Count what waits for a person, of a project or of all."""
    query = select(func.count()).select_from(Job).where(awaiting_review())
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    return session.scalars(query).one()


def _lines(session: Session, rows: Sequence[Row[Job, str, ModelVersion]]) -> tuple[JobLine, ...]:
    evaluations = latest_evaluations(session, [v.id for _, _, v in rows if v is not None])
    measured = measured_by(session, [job for job, _, _ in rows])
    progress = latest_progress(session, [j.id for j, _, _ in rows if j.status == JobStatus.RUNNING])
    rules = current_policy(session).parsed()
    return tuple(
        _line(
            job,
            name,
            version,
            evaluations.get(version.id) if version else measured.get(job.id),
            progress,
            rules,
        )
        for job, name, version in rows
    )


def _line(
    job: Job,
    project_name: str,
    version: ModelVersion | None,
    evaluation: Evaluation | None,
    progress: dict[str, Progress],
    rules: PolicyRules,
) -> JobLine:
    return JobLine(
        job=job,
        project_name=project_name,
        version=version,
        harmful_score=harmful_score(evaluation, rules) if evaluation else None,
        fine_tuning_accuracy=evaluation.parsed().fine_tuning_accuracy if evaluation else None,
        progress=progress.get(job.id),
    )
