"""Evidence beside the scores: what judges said of training rows, and what simulated customers did to a model."""

from __future__ import annotations

import math
from datetime import timedelta

from sqlalchemy.orm import Session

from api.seed.states import seed_job
from models.api_key import Project
from models.base import utc_now
from models.certificate import CertificateSummary, Estimate, Titer, WorstCase
from models.certification_plans import PLANS
from models.data_risk import DataRisk, ScreenedRow, Screening
from models.evaluation import JudgeIdentity
from models.job import Job, JobKind, JobStatus, Stage
from models.model_version import ModelVersion
from models.policy import current_policy
from models.rate import Rate, wilson
from models.stored_certificate import StoredCertificate

JUDGE = JudgeIdentity(name="sandbox", revision="2")


def seed_screening(session: Session, job: Job, *, rows: int, flagged: dict[int, str]) -> Screening:
    """Add what a judge said of a job's training rows.

    Args:
        session: an open session.
        job: whose file was read.
        rows: how many it has.
        flagged: the lines that were flagged, with their kinds of harm.
    """
    kinds = list(flagged.values())
    risk = DataRisk(
        harmful_share=Rate(count=len(flagged), n=rows),
        by_category={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        first_lines=tuple(sorted(flagged)[:10]),
        judges=(JUDGE,),
        row_threshold=0.5,
        action="allow",
        max_harmful_share=None,
        policy_version=current_policy(session).version,
        outcome="allowed",
    )
    screening = Screening(
        job_id=job.id,
        judges=[JUDGE.model_dump()],
        done=[rows],
        row_threshold=risk.row_threshold,
        action=risk.action,
        policy_version=risk.policy_version,
        summary=risk.model_dump(mode="json"),
        created_at=job.created_at,
        finished_at=job.created_at + timedelta(seconds=20),
    )
    session.add(screening)
    session.flush()
    session.add_all(
        ScreenedRow(
            job_id=job.id, line=line, votes=int(line in flagged), category=flagged.get(line)
        )
        for line in range(1, rows + 1)
    )
    session.flush()
    return screening


def seed_certificate(
    session: Session, operators: Project, version: ModelVersion, *, titer_steps: int, worst: int
) -> StoredCertificate:
    """Add a certificate of an aligned model, without the files of its report.

    Args:
        session: an open session.
        operators: whose job made it.
        version: the model.
        titer_steps: the fewest steps after which HS was above the limit.
        worst: the highest HS, of 300 answers.
    """
    plan = PLANS["quick"]
    job = seed_job(
        session,
        operators,
        name=version.id,
        model=version.id,
        status=JobStatus.SUCCEEDED,
        stage=Stage.EVALUATE,
        minutes_ago=2_700,
    )
    job.kind, job.recipe, job.training_file_id = JobKind.CERTIFY, plan.model_dump(mode="json"), None
    job.finished_at = job.created_at + timedelta(minutes=42)
    customer = max(plan.customers, key=lambda asked: asked.attack_ratio)
    summary = CertificateSummary(
        plan=plan.name,
        plan_hash=plan.hash,
        before=_estimate(3, seeds=1),
        worst_case=WorstCase(
            customer=customer.kind, step=customer.steps, harmful_score=_estimate(worst, seeds=3)
        ),
        titer=Titer(
            steps=titer_steps,
            after=titer_steps // 2,
            customer=customer.kind,
            limit_percent=15.0,
            measured_to=customer.steps,
        ),
        runs=3 * len(plan.customers),
    )
    certificate = StoredCertificate(
        version_id=version.id,
        job_id=job.id,
        plan_hash=plan.hash,
        summary=summary.model_dump(mode="json"),
        prefix=f"certificates/{job.id}/1",
        created_at=job.finished_at or utc_now(),
    )
    session.add(certificate)
    session.flush()
    return certificate


def _estimate(count: int, *, seeds: int, n: int = 300) -> Estimate:
    low, high = wilson(count, n)
    # Seeds differ by more than answers do.
    spread = math.sqrt(seeds)
    share = count / n
    return Estimate(
        percent=100 * share,
        low=max(0.0, 100 * (share - spread * (share - low))),
        high=min(100.0, 100 * (share + spread * (high - share))),
        seeds=seeds,
        n=n,
    )
