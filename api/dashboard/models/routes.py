"""The page of models: every version under the one it was made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Request
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from api.certification.report import read_report
from api.certification.service import find_certificate
from api.dashboard.measures import Measure, harmful_score
from api.dashboard.pages import render
from api.dashboard.viewer import ViewerDep
from api.deps import SessionDep, StorageDep
from api.registry.safety import latest_evaluations
from models.certificate import CertificateSummary
from models.errors import Forbidden
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import current_policy
from models.rate import Rate
from models.stored_certificate import latest_certificates

router = APIRouter()
MAX_VERSIONS_SHOWN = 500


@dataclass(frozen=True, slots=True)
class ModelLine:
    """One version, and how deep below its base it stands."""

    version: ModelVersion
    depth: int
    harmful_score: Measure | None
    fine_tuning_accuracy: Rate | None
    certificate: CertificateSummary | None


@router.get("/models")
def show_models(request: Request, session: SessionDep, viewer: ViewerDep) -> Response:
    """Show the lineage of every version that the viewer may know of."""
    lines = list_models(session, viewer.visible_project_id)
    return render(
        request,
        "models.html",
        viewer=viewer,
        lines=lines,
        is_cut=len(lines) >= MAX_VERSIONS_SHOWN,
    )


@router.get("/models/{model:path}/certificate")
def show_certificate(
    model: str, session: SessionDep, storage: StorageDep, viewer: ViewerDep
) -> Response:
    """Show a model's newest certificate, as it was stored."""
    if not viewer.is_staff:
        raise Forbidden("Certificates are for operators.")
    return read_report(storage, find_certificate(session, model), "html")


def list_models(session: Session, project_id: str | None) -> tuple[ModelLine, ...]:
    """Give versions, parents before children, siblings newest first."""
    query = (
        select(ModelVersion)
        .where(ModelVersion.deleted_at.is_(None))
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id)
        .limit(MAX_VERSIONS_SHOWN)
    )
    if project_id is not None:
        query = query.where(
            or_(
                ModelVersion.project_id == project_id,
                # Of the provider's models a customer knows those that may be tuned.
                and_(ModelVersion.kind == VersionKind.ALIGNED, ModelVersion.gate == Gate.RELEASED),
            )
        )
    versions = session.scalars(query).all()
    ids = [version.id for version in versions]
    evaluations = latest_evaluations(session, ids)
    certificates = latest_certificates(session, ids)
    rules = current_policy(session).parsed()
    lines = []
    for version, depth in _walk(list(versions)):
        found = evaluations.get(version.id)
        certificate = certificates.get(version.id)
        lines.append(
            ModelLine(
                version=version,
                depth=depth,
                harmful_score=harmful_score(found, rules) if found else None,
                fine_tuning_accuracy=found.parsed().fine_tuning_accuracy if found else None,
                certificate=certificate.parsed() if certificate else None,
            )
        )
    return tuple(lines)


def _walk(versions: list[ModelVersion]) -> Iterator[tuple[ModelVersion, int]]:
    known = {version.id for version in versions}
    children: defaultdict[str | None, list[ModelVersion]] = defaultdict(list)
    for version in versions:
        # A version whose parent was deleted or cut off stands at the top rather than nowhere.
        children[version.parent_id if version.parent_id in known else None].append(version)
    waiting = [(version, 0) for version in reversed(children[None])]
    while waiting:
        version, depth = waiting.pop()
        yield version, depth
        waiting += [(child, depth + 1) for child in reversed(children[version.id])]
