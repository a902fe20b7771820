"""Turns jobs whose data or models wait for a decision into what reviewers see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.registry.safety import data_risks, latest_evaluations, verdicts
from api.reviews.schemas import (
    AppealObject,
    AppealText,
    Approval,
    ReviewObject,
    ReviewProject,
    RiskObject,
)
from api.reviews.service import held_data, made_versions, tenant_of
from models.api_key import Project
from models.base import unix
from models.data_risk import Screening
from models.evaluation import Evaluation
from models.job import Job, JobStatus
from models.model_version import ModelVersion
from models.policy import current_policies, current_policy
from models.review import Appeal, ReviewApproval
from models.risk import tenant_risk, tenant_risks


def show_review(session: Session, job: Job) -> ReviewObject:
    """Show one review."""
    return show_reviews(session, [job])[0]


def show_reviews(
    session: Session, jobs: Sequence[Job], *, with_risk: bool = True
) -> list[ReviewObject]:
    """Show reviews; the risk is worked out once for each project, if at all: it takes all its models of a month."""
    versions = made_versions(session, jobs)
    held = held_data(session, jobs)
    ids = [job.id for job in jobs]
    safety = verdicts(session, versions.values())
    data_risk = data_risks(session, ids)
    evaluations = latest_evaluations(session, {version.id for version in versions.values()})
    appeals = {a.job_id: a for a in session.scalars(select(Appeal).where(Appeal.job_id.in_(ids)))}
    given: dict[str, list[ReviewApproval]] = {}
    for approval in session.scalars(
        select(ReviewApproval)
        .where(ReviewApproval.job_id.in_(ids))
        .order_by(ReviewApproval.created_at, ReviewApproval.key_id)
    ):
        given.setdefault(approval.job_id, []).append(approval)
    projects = {
        project.id: project
        for project in session.scalars(
            select(Project).where(Project.id.in_({job.project_id for job in jobs}))
        )
    }
    tenants = {job.id: tenant_of(job, versions.get(job.id)) for job in jobs}
    risks = tenant_risks(session, {t for t in tenants.values() if t}) if with_risk else {}
    policies = current_policies(session, set(tenants.values()))
    shown = []
    for job in jobs:
        subject = _subject(job, versions.get(job.id), held.get(job.id), evaluations)
        if subject is None:
            continue
        project = projects[job.project_id]
        appeal = appeals.get(job.id)
        shown.append(
            ReviewObject(
                id=job.id,
                status=subject.status,
                cause="appeal" if appeal and appeal.outcome is None else subject.cause,
                job=job.id,
                job_status=job.status,
                kind=job.kind,
                model=job.result_model_id,
                project=ReviewProject(id=project.id, name=project.name),
                created_at=unix(job.held_at or job.created_at),
                expires_at=unix(job.review_expires_at) if job.review_expires_at else None,
                reasons=subject.reasons,
                policy_version=subject.policy_version,
                approvals=[
                    Approval(key_id=a.key_id, reason=a.reason, created_at=unix(a.created_at))
                    for a in given.get(job.id, [])
                ],
                approvals_needed=policies[tenants[job.id]].parsed().release_approvals,
                appeal=AppealText(
                    text=appeal.text, created_at=unix(appeal.created_at), outcome=appeal.outcome
                )
                if appeal
                else None,
                safety=safety.get(versions[job.id].id) if job.id in versions else None,
                data_risk=data_risk.get(job.id),
                risk=risks[tenant].to_wire() if (tenant := tenants[job.id]) in risks else None,
            )
        )
    return shown


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a review is about, and where it is."""

    cause: Literal["data", "gate"]
    status: str
    reasons: list[str]
    policy_version: int | None


def _subject(
    job: Job,
    version: ModelVersion | None,
    held: Screening | None,
    evaluations: Mapping[str, Evaluation],
) -> _Subject | None:
    if version is not None:
        evaluation = evaluations.get(version.id)
        return _Subject(
            "gate",
            _status(job, version),
            [str(reason) for reason in version.gate_reasons],
            evaluation.policy_version if evaluation else None,
        )
    if held is None or held.review is None:
        return None
    risk = held.parsed()
    reasons = [risk.found, risk.limit] if risk is not None else []
    return _Subject("data", held.review, reasons, held.policy_version)


def show_appeal(appeal: Appeal, job: Job) -> AppealObject:
    """Show an appeal to its customer."""
    return AppealObject(
        job=job.id,
        model=job.result_model_id,
        text=appeal.text,
        created_at=unix(appeal.created_at),
        status=appeal.outcome or "open",
        closed_at=unix(appeal.closed_at) if appeal.closed_at else None,
    )


def show_risk(session: Session, project: Project) -> RiskObject:
    """Show a project's cumulative risk beside its policy's limit."""
    return RiskObject.model_validate(
        {
            **tenant_risk(session, project.id).to_wire(),
            "project": ReviewProject(id=project.id, name=project.name),
            "limit": current_policy(session, project.id).parsed().max_tenant_risk,
        }
    )


def _status(job: Job, version: ModelVersion) -> str:
    if job.awaits_review:
        return "waiting"
    if job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        return "evaluating"
    return version.gate
