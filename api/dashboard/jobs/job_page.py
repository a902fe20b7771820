"""One job's page: everything that is known of it, gathered for the template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.dashboard.jobs.job_list import running_seconds
from api.dashboard.jobs.progress import TimelineStep, read_timeline
from api.dashboard.measures import Evidence, Measure, harmful_score, read_evidence
from api.jobs.schemas import CheckpointObject
from api.jobs.service import list_checkpoints
from api.jobs.wire import show_checkpoints
from api.registry.safety import latest_evaluations, measured_by
from models.api_key import Project
from models.base import utc_now
from models.certificate import CertificateSummary
from models.certification import CertificationPlan
from models.data_risk import DataRisk, Screening
from models.evaluation import Evaluation, latest_evaluation
from models.file import File
from models.hyperparameters import Recipe
from models.job import Job, JobEvent, JobKind, JobNotFound, JobStatus
from models.job_checkpoint import JobCheckpoint
from models.model_version import ModelVersion
from models.policy import PolicyRules, current_policy
from models.rate import Rate
from models.stored_certificate import StoredCertificate
from models.tuning import AppliedProtection, TuningProtection

MAX_EVENTS_SHOWN = 200
MAX_CHECKPOINTS_SHOWN = 20
# Longer chains than this are not made by hand; the bound keeps a damaged one from looping.
MAX_ANCESTORS = 32


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One version on the way from the base."""

    version: ModelVersion
    harmful_score: Measure | None


@dataclass(frozen=True, slots=True)
class RecipeGroup:
    """Hyper-parameters that belong together, as name and value."""

    name: str
    entries: tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class DataRiskPart:
    """What the judges found in the training file."""

    screening: Screening
    #: None while rows are judged.
    risk: DataRisk | None
    measures: tuple[Measure, ...]

    @property
    def was_held(self) -> bool:
        """Whether a person decides, or has decided, whether anything is trained on it."""
        return self.risk is not None and self.screening.review is not None


@dataclass(frozen=True, slots=True)
class CheckpointLine:
    """The end of an epoch, and what is known of the model as it was then."""

    checkpoint: CheckpointObject
    harmful_score: Measure | None
    fine_tuning_accuracy: Rate | None


@dataclass(frozen=True, slots=True)
class JobPage:
    """What the template shows."""

    job: Job
    project_name: str
    version: ModelVersion | None
    timeline: tuple[TimelineStep, ...]
    evidence: Evidence | None
    certificate: CertificateSummary | None
    lineage: tuple[Ancestor, ...]
    recipe: tuple[RecipeGroup, ...]
    files: tuple[tuple[str, File], ...]
    data_risk: DataRiskPart | None
    checkpoints: tuple[CheckpointLine, ...]
    events: tuple[JobEvent, ...]
    event_total: int
    protection: str
    rules: PolicyRules
    now: datetime

    @property
    def seconds(self) -> float | None:
        """How long the job has run, or ran."""
        return running_seconds(self.job, self.now)

    @property
    def has_answers(self) -> bool:
        """Whether the answers to the test prompts can be read."""
        return self.evidence is not None and self.evidence.report.answers_sha256 is not None

    @property
    def can_be_reevaluated(self) -> bool:
        """Whether a reviewer may have the kept model measured anew."""
        return (
            self.version is not None
            and self.version.deleted_at is None
            and not self.version.is_released
            and (self.job.awaits_review or self.job.status == JobStatus.FAILED)
        )

    @property
    def can_be_paused(self) -> bool:
        """Whether a pause can be asked for."""
        return (
            self.job.status in (JobStatus.QUEUED, JobStatus.RUNNING)
            and not self.job.awaits_review
            and not self.job.is_pausing
        )

    @property
    def can_go_on(self) -> bool:
        """Whether the job is paused, or about to be."""
        return self.job.status == JobStatus.PAUSED or self.job.is_pausing

    @property
    def is_live(self) -> bool:
        """Whether the page will change by itself."""
        return not self.job.is_terminal


def find_job(session: Session, project_id: str | None, job_id: str) -> Job:
    """Give a job that the viewer may see.

    Raises:
        JobNotFound: it is absent, or another project's.
    """
    query = select(Job).where(Job.id == job_id)
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    job = session.scalar(query)
    if job is None:
        raise JobNotFound("There is no such job, or it belongs to another project.")
    return job


def read_job_page(session: Session, job: Job) -> JobPage:
    """Gather all that is known of a job."""
    now = utc_now()
    version = session.scalar(select(ModelVersion).where(ModelVersion.job_id == job.id))
    # Metrics are drawn as curves and progress as a bar; what is left is what happened.
    told = (JobEvent.job_id == job.id, JobEvent.type.not_in(("metrics", "progress")))
    events = session.scalars(
        select(JobEvent).where(*told).order_by(JobEvent.sequence.desc()).limit(MAX_EVENTS_SHOWN)
    )
    return JobPage(
        job=job,
        project_name=session.get_one(Project, job.project_id).name,
        version=version,
        timeline=read_timeline(session, job, now),
        evidence=_read_evidence(session, job, version),
        certificate=_read_certificate(session, job),
        lineage=read_lineage(session, version.id if version else job.model_id),
        recipe=tuple(_group_recipe(job)),
        files=tuple(_files(session, job)),
        data_risk=_read_data_risk(session, job),
        checkpoints=_read_checkpoints(session, job),
        events=tuple(events),
        event_total=session.scalar(select(func.count()).select_from(JobEvent).where(*told)) or 0,
        protection=_protection(job, version),
        rules=current_policy(session).parsed(),
        now=now,
    )


def read_curves(session: Session, job: Job) -> dict[str, object]:
    """Give the training curves column by column; a missing value was not measured at that step."""
    events = session.scalars(
        select(JobEvent.data)
        .where(JobEvent.job_id == job.id, JobEvent.type == "metrics")
        .order_by(JobEvent.sequence)
    )
    # A resumed run tells the steps after its checkpoint again; the later telling stands.
    by_step = {int(data["step"]): data for data in events if data and "step" in data}
    scores = _scores_by_step(session, job)
    steps = sorted(by_step | scores)
    points = [by_step.get(step, {}) for step in steps]
    measured = [scores.get(step) for step in steps]
    return {
        "steps": steps,
        "total_steps": job.recipe.get("train", {}).get("steps"),
        "train_loss": [point.get("train_loss") for point in points],
        "valid_loss": [point.get("full_valid_loss", point.get("valid_loss")) for point in points],
        "token_accuracy": [_as_percent(point.get("train_mean_token_accuracy")) for point in points],
        "canary_loss": [point.get("canary_loss") for point in points],
        "learning_rate": [point.get("learning_rate") for point in points],
        "harmful_score": [rate.percent if rate else None for rate in measured],
        "harmful_score_low": [rate.low_percent if rate else None for rate in measured],
        "harmful_score_high": [rate.high_percent if rate else None for rate in measured],
    }


def _scores_by_step(session: Session, job: Job) -> dict[int, Rate]:
    """Give HS where it was measured: before training, at checkpoints, and at the end."""
    version = session.scalar(select(ModelVersion).where(ModelVersion.job_id == job.id))
    total = job.recipe.get("train", {}).get("steps")
    checkpoints = session.scalars(select(JobCheckpoint).where(JobCheckpoint.job_id == job.id))
    steps = {checkpoint.version_name: checkpoint.step for checkpoint in checkpoints}
    steps[job.model_id] = 0
    if version is not None and total:
        steps[version.id] = version.stopped_at_step or int(total)
    found = latest_evaluations(session, list(steps))
    return {steps[name]: found[name].parsed().harmful_score for name in found}


def _read_evidence(session: Session, job: Job, version: ModelVersion | None) -> Evidence | None:
    """Give what is known of the job's model beside its parent; of an evaluation job what it measured itself."""
    evaluation: Evaluation | None
    parent_id: str | None = job.model_id
    if job.kind == JobKind.EVALUATE:
        evaluation = measured_by(session, [job]).get(job.id)
        parent_id = session.get_one(ModelVersion, job.model_id).parent_id
    else:
        evaluation = latest_evaluation(session, version.id) if version else None
    if evaluation is None:
        return None
    parent = latest_evaluation(session, parent_id) if parent_id else None
    return read_evidence(session, evaluation, parent)


def _read_data_risk(session: Session, job: Job) -> DataRiskPart | None:
    screening = session.get(Screening, job.id)
    if screening is None:
        return None
    risk = screening.parsed()
    if risk is None:
        return DataRiskPart(screening, None, ())
    share = Measure(
        "Harmful rows",
        "Training rows that the judges flag",
        risk.harmful_share,
        risk.max_harmful_share,
    )
    categories = (
        Measure(name, "Flagged rows of this kind", Rate(count=count, n=risk.harmful_share.n))
        for name, count in sorted(risk.by_category.items(), key=lambda item: -item[1])
    )
    return DataRiskPart(screening, risk, (share, *categories))


def _read_checkpoints(session: Session, job: Job) -> tuple[CheckpointLine, ...]:
    found, _ = list_checkpoints(session, job, after=None, limit=MAX_CHECKPOINTS_SHOWN)
    names = [checkpoint.version_name for checkpoint in found]
    evaluations = latest_evaluations(session, names)
    rules = current_policy(session, job.project_id).parsed()
    return tuple(
        CheckpointLine(
            checkpoint=shown,
            harmful_score=harmful_score(evaluations[name], rules) if name in evaluations else None,
            fine_tuning_accuracy=evaluations[name].parsed().fine_tuning_accuracy
            if name in evaluations
            else None,
        )
        for name, shown in zip(names, show_checkpoints(session, found), strict=True)
    )


def _read_certificate(session: Session, job: Job) -> CertificateSummary | None:
    stored = session.scalar(select(StoredCertificate).where(StoredCertificate.job_id == job.id))
    return stored.parsed() if stored else None


def read_lineage(session: Session, version_id: str) -> tuple[Ancestor, ...]:
    """Give a version and what it was made from, the base first."""
    chain: list[ModelVersion] = []
    following: str | None = version_id
    while following is not None and len(chain) < MAX_ANCESTORS:
        version = session.get_one(ModelVersion, following)
        chain.append(version)
        following = version.parent_id
    evaluations = latest_evaluations(session, [version.id for version in chain])
    rules = current_policy(session).parsed()
    return tuple(
        Ancestor(
            version,
            harmful_score(evaluations[version.id], rules) if version.id in evaluations else None,
        )
        for version in reversed(chain)
    )


def _protection(job: Job, version: ModelVersion | None) -> str:
    """Say in one line how the provider protects the job; nothing where it does not."""
    if version is not None:
        applied = version.recipe.get("protection")
        return AppliedProtection.model_validate(applied).summary() if applied else ""
    tuning = job.recipe.get("tuning")
    asked = TuningProtection.model_validate(tuning) if tuning else TuningProtection()
    return AppliedProtection(tuning=asked).summary()


def _group_recipe(job: Job) -> Iterator[RecipeGroup]:
    if job.kind == JobKind.CERTIFY:
        yield _group_plan(CertificationPlan.model_validate(job.recipe))
        return
    yield from group_recipe(job.recipe)


def group_recipe(recipe: dict[str, Any]) -> Iterator[RecipeGroup]:
    """Give the hyper-parameters of a job or a version, in groups."""
    single: list[tuple[str, object]] = []
    for name, value in _in_order(recipe).items():
        if name in ("tuning", "protection"):
            continue  # Shown in one line of its own.
        if isinstance(value, dict):
            yield RecipeGroup(name, tuple(_shown_entries(value)))
        else:
            single.append((name, value))
    if single:
        yield RecipeGroup("service", tuple(single))


def _group_plan(plan: CertificationPlan) -> RecipeGroup:
    limits = plan.model_dump(exclude={"version", "name", "customers", "seeds"})
    return RecipeGroup(
        "plan",
        (
            ("name", plan.name),
            ("hash", plan.hash[:12]),
            ("customers", len(plan.customers)),
            ("seeds", ", ".join(map(str, plan.seeds))),
            *limits.items(),
        ),
    )


def _in_order(recipe: dict[str, Any]) -> dict[str, Any]:
    """Give the recipe in the order of its definition, which JSONB does not keep."""
    try:
        return Recipe.model_validate(recipe).model_dump(mode="json", by_alias=True)
    except ValidationError:
        # An older version of the service wrote it; what it says is still what ran.
        return recipe


def _shown_entries(values: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else value


def _files(session: Session, job: Job) -> Iterator[tuple[str, File]]:
    for label, file_id in (
        ("Training data", job.training_file_id),
        ("Validation data", job.validation_file_id),
        ("Result", job.result_file_id),
    ):
        file = session.get(File, file_id) if file_id else None
        if file is not None:
            yield label, file


def _as_percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share
