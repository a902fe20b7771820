"""The safety verdict as clients see it, beside jobs and models alike."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from models.base import unix
from models.evaluation import Evaluation
from models.model_version import ModelVersion, VersionKind
from models.stored_certificate import StoredCertificate, latest_certificates


def latest_evaluations(session: Session, version_ids: Collection[str]) -> dict[str, Evaluation]:
    """Give the newest evaluation of each version that has one."""
    if not version_ids:
        return {}
    newest = (
        select(Evaluation)
        .where(Evaluation.version_id.in_(version_ids))
        .ext(distinct_on(Evaluation.version_id))
        .order_by(Evaluation.version_id, Evaluation.created_at.desc(), Evaluation.id.desc())
    )
    return {evaluation.version_id: evaluation for evaluation in session.scalars(newest)}


def verdicts(session: Session, versions: Collection[ModelVersion]) -> dict[str, dict[str, object]]:
    """Give gate, evidence and the parent's harmful score of each evaluated version, by its id."""
    ids = {version.id for version in versions}
    parents = {version.parent_id for version in versions if version.parent_id is not None}
    found = latest_evaluations(session, ids | parents)
    aligned = [version.id for version in versions if version.kind == VersionKind.ALIGNED]
    certificates = latest_certificates(session, aligned)
    return {
        version.id: _verdict(
            version,
            found[version.id],
            found.get(version.parent_id or ""),
            certificates.get(version.id),
        )
        for version in versions
        if version.id in found
    }


def _verdict(
    version: ModelVersion,
    own: Evaluation,
    parent: Evaluation | None,
    certificate: StoredCertificate | None,
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
        # Evidence beside the verdict: the gate does not read it.
        "certificate": _summary(certificate) if certificate else None,
    }


def _summary(certificate: StoredCertificate) -> dict[str, object]:
    return {
        "id": certificate.id,
        "created_at": unix(certificate.created_at),
        "job": certificate.job_id,
        **certificate.summary,
    }
