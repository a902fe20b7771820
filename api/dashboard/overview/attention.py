"""What needs a person: held models and data, models whose training the canary ended, jobs that failed by our own fault."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.dashboard.jobs.job_list import MAX_HELD_SHOWN, count_held
from api.dashboard.measures import Measure, harmful_score
from api.registry.safety import latest_evaluations
from api.reviews.service import held_data
from models.api_key import Project
from models.base import utc_now
from models.job import Job, Stage, awaiting_review
from models.model_version import CANARY_FELL, ModelVersion
from models.policy import current_policy
from models.review import Appeal

MAX_SHOWN = 5
ALARMS_SINCE = timedelta(days=7)
FAULTS_SINCE = timedelta(days=1)
#: Codes of failures that no customer can do anything about.
OUR_FAULTS = (
    "base_unavailable",
    "content_damaged",
    "content_missing",
    "internal_error",
    "invalid_safety_set",
    "judge_failed",
    "unusable_adapter",
    "worker_lost",
)


@dataclass(frozen=True, slots=True)
class HeldLine:
    """A model, or training data, that waits for a decision; `appealed_at`: the customer asked for one."""

    job: Job
    project_name: str
    reasons: tuple[str, ...]
    harmful_score: Measure | None
    appealed_at: datetime | None

    @property
    def since(self) -> datetime:
        """Since when it waits."""
        return self.job.held_at or self.job.created_at

    @property
    def is_data(self) -> bool:
        """Whether it is data, of which nothing is made yet."""
        return self.job.stage == Stage.DATA_REVIEW


@dataclass(frozen=True, slots=True)
class Held:
    """What waits, the longest waiting first, and how much there is in all."""

    lines: tuple[HeldLine, ...]
    total: int
    appeals: int


@dataclass(frozen=True, slots=True)
class EndedByCanary:
    """A model whose training was ended because the loss on held-out harmful rows fell."""

    version: ModelVersion
    project_name: str

    @property
    def steps(self) -> int | None:
        """How many there were to be."""
        planned = self.version.recipe.get("train", {}).get("steps")
        return int(planned) if planned is not None else None


@dataclass(frozen=True, slots=True)
class Faults:
    """The newest jobs that failed by a fault of ours, with their projects' names; and how many in all."""

    lines: tuple[tuple[Job, str], ...]
    total: int


def read_held(session: Session) -> Held:
    """Read the review queue's head."""
    rows = session.execute(
        select(Job, Project.name, ModelVersion, Appeal.created_at)
        .join(Project, Project.id == Job.project_id)
        .outerjoin(ModelVersion, ModelVersion.job_id == Job.id)
        .outerjoin(Appeal, (Appeal.job_id == Job.id) & Appeal.outcome.is_(None))
        .where(awaiting_review())
        .order_by(Job.held_at, Job.id)
        .limit(MAX_HELD_SHOWN)
    ).all()
    appeals = session.scalars(
        select(func.count()).select_from(Appeal).where(Appeal.outcome.is_(None))
    ).one()
    found = latest_evaluations(session, [version.id for _, _, version, _ in rows if version])
    rules = current_policy(session).parsed()
    screenings = held_data(session, [job for job, _, version, _ in rows if version is None])
    lines = []
    for job, project_name, version, appealed_at in rows:
        evaluation = found.get(version.id) if version is not None else None
        reasons = tuple(version.gate_reasons) if version is not None else ()
        if (screening := screenings.get(job.id)) and (risk := screening.parsed()):
            reasons = (risk.found,)
        measure = harmful_score(evaluation, rules) if evaluation is not None else None
        lines.append(HeldLine(job, project_name, reasons, measure, appealed_at))
    return Held(tuple(lines), count_held(session), appeals)


def read_alarms(session: Session) -> tuple[EndedByCanary, ...]:
    """Read whose training the canary ended lately, newest first."""
    rows = session.execute(
        select(ModelVersion, Project.name)
        .join(Project, Project.id == ModelVersion.project_id)
        .where(CANARY_FELL, ModelVersion.created_at >= utc_now() - ALARMS_SINCE)
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id)
        .limit(MAX_SHOWN)
    )
    return tuple(EndedByCanary(version, name) for version, name in rows)


def read_faults(session: Session) -> Faults:
    """Read what failed lately by a fault of ours, newest first."""
    failed = (Job.error_code.in_(OUR_FAULTS), Job.finished_at >= utc_now() - FAULTS_SINCE)
    rows = session.execute(
        select(Job, Project.name)
        .join(Project, Project.id == Job.project_id)
        .where(*failed)
        .order_by(Job.finished_at.desc(), Job.id)
        .limit(MAX_SHOWN)
    ).all()
    total = len(rows)
    if total == MAX_SHOWN:
        total = session.scalar(select(func.count()).select_from(Job).where(*failed)) or 0
    return Faults(tuple((job, name) for job, name in rows), total)
