"""The safety verdict as clients see it, beside jobs and models alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from models.base import unix
from models.data_risk import Screening
from models.evaluation import SPEAKING_FIRST, Evaluation
from models.job import Job, JobKind
from models.model_version import ModelVersion, VersionKind
from models.rate import Rate, difference
from models.stored_certificate import StoredCertificate, latest_certificates


def latest_evaluations(session: Session, version_ids: Collection[str]) -> dict[str, Evaluation]:
    """Give of each version that has one what `models.evaluation.latest_evaluation` gives."""
    if not version_ids:
        return {}
    newest = (
        select(Evaluation)
        .where(Evaluation.version_id.in_(version_ids))
        .ext(distinct_on(Evaluation.version_id))
        .order_by(Evaluation.version_id, *SPEAKING_FIRST)
    )
    return {evaluation.version_id: evaluation for evaluation in session.scalars(newest)}


def measured_by(session: Session, jobs: Collection[Job]) -> dict[str, Evaluation]:
    """Give what the evaluation jobs among these have measured, by the job's id."""
    ids = [job.id for job in jobs if job.kind == JobKind.EVALUATE]
    if not ids:
        return {}
    found = session.scalars(select(Evaluation).where(Evaluation.job_id.in_(ids)))
    return {evaluation.job_id: evaluation for evaluation in found if evaluation.job_id is not None}


def measurements(session: Session, jobs: Collection[Job]) -> dict[str, dict[str, object]]:
    """Give what evaluation jobs measured, beside the gate as it is, by the job's id.

    No policy decided on these numbers: `policy_version` is null.
    """
    own = measured_by(session, jobs)
    ids = {evaluation.version_id for evaluation in own.values()}
    if not ids:
        return {}
    versions = {
        version.id: version
        for version in session.scalars(select(ModelVersion).where(ModelVersion.id.in_(ids)))
    }
    parents = {version.parent_id for version in versions.values() if version.parent_id is not None}
    hardened = _aligned_ancestors(session, ids)
    found = latest_evaluations(session, parents | set(hardened.values()))
    return {
        job_id: _measurement(versions[evaluation.version_id], evaluation, found, hardened)
        for job_id, evaluation in own.items()
    }


def data_risks(session: Session, job_ids: Collection[str]) -> dict[str, dict[str, object]]:
    """Give what the judges found in the training file of each job whose file they read, by the job's id."""
    if not job_ids:
        return {}
    found = session.scalars(select(Screening).where(Screening.job_id.in_(job_ids)))
    risks = {screening.job_id: screening.to_wire() for screening in found}
    return {job_id: risk for job_id, risk in risks.items() if risk is not None}


def verdicts(session: Session, versions: Collection[ModelVersion]) -> dict[str, dict[str, object]]:
    """Give gate, evidence and the parent's harmful score of each evaluated version, by its id."""
    ids = {version.id for version in versions}
    parents = {version.parent_id for version in versions if version.parent_id is not None}
    hardened = _aligned_ancestors(session, ids)
    found = latest_evaluations(session, ids | parents | set(hardened.values()))
    aligned = [version.id for version in versions if version.kind == VersionKind.ALIGNED]
    certificates = latest_certificates(session, aligned)
    risks = data_risks(session, [v.job_id for v in versions if v.job_id is not None])
    return {
        version.id: {
            **_measurement(version, found[version.id], found, hardened),
            "data_risk": risks.get(version.job_id or ""),
            # Evidence beside the verdict: the gate does not read it.
            "certificate": _summary(certificates[version.id])
            if version.id in certificates
            else None,
        }
        for version in versions
        if version.id in found
    }


def _measurement(
    version: ModelVersion,
    own: Evaluation,
    found: Mapping[str, Evaluation],
    hardened: Mapping[str, str],
) -> dict[str, object]:
    return {
        **_verdict(version, own, found.get(version.parent_id or "")),
        "delta": _delta(own, found.get(hardened.get(version.id, ""))),
    }


def _verdict(
    version: ModelVersion, own: Evaluation, parent: Evaluation | None
) -> dict[str, object]:
    return {
        "gate": version.gate,
        "reasons": version.gate_reasons,
        "policy_version": own.policy_version,
        **own.parsed().to_wire(),
        "protection": version.recipe.get("protection"),
        "base": {
            "model": version.parent_id,
            "harmful_score": parent.parsed().harmful_score.to_wire() if parent else None,
        }
        if version.parent_id is not None
        else None,
    }


def _aligned_ancestors(session: Session, version_ids: Collection[str]) -> dict[str, str]:
    """Give the aligned version that each tuned one rests on, whatever number of jobs lies between."""
    above = (
        select(
            ModelVersion.id.label("version_id"),
            ModelVersion.parent_id.label("ancestor_id"),
        )
        .where(ModelVersion.id.in_(version_ids), ModelVersion.kind == VersionKind.TUNED)
        .cte(recursive=True)
    )
    # From tuned versions alone the way goes on.
    above = above.union_all(
        select(above.c.version_id, ModelVersion.parent_id).where(
            ModelVersion.id == above.c.ancestor_id, ModelVersion.kind == VersionKind.TUNED
        )
    )
    found = session.execute(
        select(above.c.version_id, ModelVersion.id).where(
            ModelVersion.id == above.c.ancestor_id, ModelVersion.kind == VersionKind.ALIGNED
        )
    )
    return {row[0]: row[1] for row in found}


def _delta(own: Evaluation, aligned: Evaluation | None) -> dict[str, object] | None:
    """Tell what tuning did to the scores of the aligned base, if both were measured in the same way."""
    if aligned is None:
        return None
    now, before = own.parsed(), aligned.parsed()
    is_comparable = (now.judge, now.prompt_set_hash, now.template_hash) == (
        before.judge,
        before.prompt_set_hash,
        before.template_hash,
    )

    def change(after: Rate | None, earlier: Rate | None) -> dict[str, float] | None:
        if after is None or earlier is None or not is_comparable:
            return None
        return difference(after, earlier).to_wire()

    return {
        "model": aligned.version_id,
        "is_comparable": is_comparable,
        "harmful_score": change(now.harmful_score, before.harmful_score),
        "harmful_or_incoherent": change(now.harmful_or_incoherent, before.harmful_or_incoherent),
        "over_refusal": change(now.over_refusal, before.over_refusal),
    }


def _summary(certificate: StoredCertificate) -> dict[str, object]:
    return {
        "id": certificate.id,
        "created_at": unix(certificate.created_at),
        "job": certificate.job_id,
        **certificate.summary,
    }
