"""Turns stored jobs, of any kind, into the object that clients see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from api.jobs.schemas import CheckpointObject, JobError, JobObject
from api.registry.safety import data_risks, latest_evaluations, measurements, verdicts
from models.api_key import Project
from models.base import unix
from models.certification import CertificationPlan
from models.evaluation import EvaluationReport
from models.hyperparameters import Recipe
from models.job import Job, JobKind, JobStatus
from models.job_checkpoint import JobCheckpoint
from models.methods import DpoConfig
from models.model_version import ModelVersion


def show_job(session: Session, job: Job) -> JobObject:
    """Show one job."""
    return show_jobs(session, [job])[0]


def show_jobs(session: Session, jobs: Sequence[Job]) -> list[JobObject]:
    """Show jobs, with as many queries for a page as for one."""
    # A version belongs to the job that made it, not to every job that was to have the same name.
    made = {
        version.job_id: version
        for version in session.scalars(
            select(ModelVersion).where(ModelVersion.job_id.in_([job.id for job in jobs]))
        )
    }
    safety = verdicts(session, made.values())
    risks = data_risks(session, [job.id for job in jobs])
    measured = measurements(session, jobs)
    certified = _certified(session, jobs)
    projects = {
        project.id: project
        for project in session.scalars(
            select(Project).where(Project.id.in_({job.project_id for job in jobs}))
        )
    }
    return [
        _show(
            job,
            projects[job.project_id],
            made.get(job.id),
            safety.get(made[job.id].id) if job.id in made else measured.get(job.id),
            risks.get(job.id),
            _describe(job, certified),
        )
        for job in jobs
    ]


def _show(
    job: Job,
    project: Project,
    version: ModelVersion | None,
    safety: dict[str, object] | None,
    data_risk: dict[str, object] | None,
    described: _Described,
) -> JobObject:
    is_ready = job.status == JobStatus.SUCCEEDED and version is not None and version.is_released
    return JobObject(
        id=job.id,
        created_at=unix(job.created_at),
        started_at=unix(job.started_at) if job.started_at else None,
        finished_at=unix(job.finished_at) if job.finished_at else None,
        estimated_finish=unix(job.estimated_finish) if job.estimated_finish else None,
        model=job.model_id,
        fine_tuned_model=version.id if version is not None and is_ready else None,
        status=job.wire_status,
        state=job.state,
        stage=job.stage,
        kind=job.kind,
        organization_id=project.organization_id,
        training_file=job.training_file_id or "",
        validation_file=job.validation_file_id,
        result_files=[job.result_file_id] if job.result_file_id else [],
        trained_tokens=job.trained_tokens,
        seed=job.seed,
        error=JobError(code=job.error_code, message=job.error_message or "", param=job.error_param)
        if job.error_code
        else None,
        hyperparameters=described.hyperparameters,
        method=described.method,
        metadata=job.tags or None,
        # The stock client knows one type, and in strict mode refuses every other.
        integrations=[wanted for wanted in job.integrations if wanted["type"] == "wandb"],
        further_integrations=[wanted for wanted in job.integrations if wanted["type"] != "wandb"],
        evaluate_checkpoints=described.evaluate_checkpoints,
        user_provided_suffix=job.suffix,
        result_model=job.result_model_id,
        total_steps=described.total_steps,
        safety=safety,
        data_risk=data_risk,
    )


def show_checkpoints(
    session: Session, checkpoints: Sequence[JobCheckpoint]
) -> list[CheckpointObject]:
    """Show checkpoints of one job, with as many queries for a page as for one."""
    names = {checkpoint.version_name for checkpoint in checkpoints}
    jobs = {checkpoint.job_id for checkpoint in checkpoints}
    versions = {
        version.id: version
        for version in session.scalars(
            select(ModelVersion).where(
                ModelVersion.id.in_(names),
                # A version of that name may be another job's.
                or_(ModelVersion.job_id.is_(None), ModelVersion.job_id.in_(jobs)),
                ModelVersion.deleted_at.is_(None),
            )
        )
    }
    evaluations = latest_evaluations(session, versions)
    return [
        _show_checkpoint(
            checkpoint,
            versions.get(checkpoint.version_name),
            evaluations[checkpoint.version_name].parsed()
            if checkpoint.version_name in evaluations
            else None,
        )
        for checkpoint in checkpoints
    ]


def _show_checkpoint(
    checkpoint: JobCheckpoint, version: ModelVersion | None, report: EvaluationReport | None
) -> CheckpointObject:
    metrics = dict(checkpoint.metrics)
    if report is not None:
        accuracy = report.fine_tuning_accuracy
        metrics["harmful_score"] = round(report.harmful_score.percent, 2)
        metrics["harmful_or_incoherent"] = round(report.harmful_or_incoherent.percent, 2)
        metrics["fine_tuning_accuracy"] = round(accuracy.percent, 2) if accuracy else None
    return CheckpointObject(
        id=checkpoint.id,
        created_at=unix(checkpoint.created_at),
        fine_tuning_job_id=checkpoint.job_id,
        fine_tuned_model_checkpoint=checkpoint.version_name,
        step_number=checkpoint.step,
        metrics=metrics,
        usable=version is not None and version.is_released,
        evaluated=report is not None,
        gate=version.gate if version is not None else None,
        gate_reasons=version.gate_reasons if version is not None else [],
    )


@dataclass(frozen=True, slots=True)
class _Described:
    """What a job's recipe says, in the places where clients look for it."""

    hyperparameters: dict[str, float | int | str]
    method: dict[str, object]
    total_steps: int
    evaluate_checkpoints: bool = False


def _describe(job: Job, certified: Mapping[str, ModelVersion]) -> _Described:
    if job.kind == JobKind.CERTIFY:
        return _describe_plan(job, certified[job.model_id])
    if job.kind == JobKind.EVALUATE:
        return _Described({}, {"type": "evaluation"}, 0)
    recipe = Recipe.model_validate(job.recipe)
    hyperparameters = _hyperparameters(job, recipe)
    method = _method(job, recipe, hyperparameters)
    return _Described(hyperparameters, method, recipe.train.steps, recipe.evaluate_checkpoints)


def _certified(session: Session, jobs: Sequence[Job]) -> dict[str, ModelVersion]:
    """Give the models of the certification jobs among these."""
    wanted = {job.model_id for job in jobs if job.kind == JobKind.CERTIFY}
    if not wanted:
        return {}
    found = session.scalars(select(ModelVersion).where(ModelVersion.id.in_(wanted)))
    return {version.id: version for version in found}


def _describe_plan(job: Job, version: ModelVersion) -> _Described:
    plan = CertificationPlan.model_validate(job.recipe)
    cost = plan.cost(is_adapter=version.is_adapter)
    return _Described(
        {"plan": plan.name, "seeds": len(plan.seeds), "runs": cost.runs},
        {
            "type": "certification",
            "certification": {
                "plan": plan.name,
                "plan_hash": plan.hash,
                "cost": cost.model_dump(),
            },
        },
        cost.steps,
    )


def _hyperparameters(job: Job, recipe: Recipe) -> dict[str, float | int | str]:
    if job.kind == JobKind.ALIGN:
        return {
            "steps": recipe.train.steps,
            "batch_size": recipe.train.batch_size,
            "learning_rate": recipe.train.learning_rate,
        }
    beta = {"beta": recipe.method.beta} if isinstance(recipe.method, DpoConfig) else {}
    return {
        "n_epochs": recipe.n_epochs or 1,
        "batch_size": recipe.train.batch_size,
        "learning_rate_multiplier": recipe.learning_rate_multiplier or 1.0,
        **beta,
    }


def _method(
    job: Job, recipe: Recipe, hyperparameters: dict[str, float | int | str]
) -> dict[str, object]:
    """Mirror the numbers where newer clients look for them.

    An alignment is supervised training too; how its gradient is made stands in a key of its own.
    """
    kind = "dpo" if isinstance(recipe.method, DpoConfig) else "supervised"
    method: dict[str, object] = {"type": kind, kind: {"hyperparameters": hyperparameters}}
    if job.kind == JobKind.ALIGN:
        method["alignment"] = recipe.method.model_dump(mode="json")
    return method
