"""One model's page: everything that is known of it, gathered for the template."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.jobs.job_page import Ancestor, RecipeGroup, group_recipe, read_lineage
from api.dashboard.measures import Evidence, read_evidence
from api.dashboard.models.certificate_view import CertificateView, read_certificate_view
from api.dashboard.models.lineage import NONE_TUNED, TunedCount, count_tuned
from api.dashboard.viewer import Viewer
from api.export.service import find_exportable
from api.registry.service import get_model
from models.api_key import Project
from models.certificate import CertificateSummary
from models.errors import DomainError
from models.evaluation import latest_evaluation
from models.file import File
from models.job import Job, JobKind
from models.model_version import ModelVersion, VersionKind
from models.policy import PolicyRules, current_policy
from models.settings import Settings
from models.storage import Storage
from models.stored_certificate import StoredCertificate, latest_certificates
from models.tuning import AppliedProtection

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ModelPage:
    """What the template shows."""

    version: ModelVersion
    job: Job | None
    project: Project | None
    training_file: File | None
    lineage: tuple[Ancestor, ...]
    #: The newest that were aligned on it, or tuned from it.
    children: tuple[ModelVersion, ...]
    tuned: TunedCount
    evidence: Evidence | None
    rules: PolicyRules
    summary: CertificateSummary | None
    certificate: CertificateView | None
    #: What simulated customers found, drills as well, newest first.
    reports: tuple[StoredCertificate, ...]
    #: Alignments, certifications and evaluations of it that have not ended.
    under_way: tuple[Job, ...]
    recipe: tuple[RecipeGroup, ...]
    protection: str
    may_export: bool

    @property
    def data_hashes(self) -> list[tuple[str, str]]:
        """What it was made from, by name."""
        return sorted((str(name), str(value)) for name, value in self.version.data_hashes.items())


def read_model_page(
    session: Session, storage: Storage, settings: Settings, viewer: Viewer, model_id: str
) -> ModelPage:
    """Gather all that a viewer may know of a model.

    Raises:
        ModelNotFound: it is absent, or not theirs to see.
    """
    project_id = viewer.visible_project_id
    version = get_model(session, model_id, project_id=project_id)
    evaluation = latest_evaluation(session, version.id)
    # A customer knows neither the job that aligned a base nor the base itself.
    is_whole = viewer.is_staff or version.project_id is not None
    job = session.get(Job, version.job_id) if version.job_id and is_whole else None
    parent = latest_evaluation(session, version.parent_id) if version.parent_id else None
    lineage = read_lineage(session, version.id)
    if not viewer.is_staff:
        lineage = tuple(a for a in lineage if a.version.kind != VersionKind.BASE)
    certificate = None
    if viewer.is_staff and version.kind == VersionKind.ALIGNED:
        certificate = read_certificate_view(session, storage, version)
    stored = latest_certificates(session, [version.id]).get(version.id)
    protection = version.recipe.get("protection")
    return ModelPage(
        version=version,
        job=job,
        project=session.get(Project, version.project_id) if version.project_id else None,
        training_file=session.get(File, job.training_file_id)
        if job and job.training_file_id
        else None,
        lineage=lineage,
        children=_children(session, project_id, version),
        tuned=count_tuned(session, project_id, [version.id])[version.id]
        if version.kind == VersionKind.ALIGNED
        else NONE_TUNED,
        evidence=read_evidence(session, evaluation, parent) if evaluation else None,
        rules=current_policy(session, version.project_id).parsed(),
        summary=stored.parsed() if stored else None,
        certificate=certificate,
        reports=_reports(session, version) if viewer.is_staff else (),
        under_way=_under_way(session, version) if viewer.is_staff else (),
        recipe=tuple(group_recipe(version.recipe)) if version.recipe else (),
        protection=AppliedProtection.model_validate(protection).summary() if protection else "",
        may_export=_may_export(session, storage, settings, version, project_id),
    )


def _children(
    session: Session, project_id: str | None, version: ModelVersion
) -> tuple[ModelVersion, ...]:
    query = select(ModelVersion).where(
        ModelVersion.parent_id == version.id, ModelVersion.deleted_at.is_(None)
    )
    if project_id is not None:
        query = query.where(ModelVersion.project_id == project_id)
    if version.kind != VersionKind.TUNED:
        # Tuned ones may be many; they are counted.
        query = query.where(ModelVersion.kind == VersionKind.ALIGNED)
    newest = query.order_by(ModelVersion.created_at.desc(), ModelVersion.id).limit(MAX_SHOWN)
    return tuple(session.scalars(newest))


def _reports(session: Session, version: ModelVersion) -> tuple[StoredCertificate, ...]:
    return tuple(
        session.scalars(
            select(StoredCertificate)
            .where(StoredCertificate.version_id == version.id)
            .order_by(StoredCertificate.created_at.desc(), StoredCertificate.id.desc())
            .limit(MAX_SHOWN)
        )
    )


def _under_way(session: Session, version: ModelVersion) -> tuple[Job, ...]:
    return tuple(
        session.scalars(
            select(Job)
            .where(
                Job.model_id == version.id,
                Job.kind.in_((JobKind.ALIGN, JobKind.CERTIFY, JobKind.EVALUATE)),
                # Of all jobs only those that have not ended are looked at.
                Job.finished_at.is_(None),
            )
            .order_by(Job.created_at.desc())
            .limit(MAX_SHOWN)
        )
    )


def _may_export(
    session: Session,
    storage: Storage,
    settings: Settings,
    version: ModelVersion,
    project_id: str | None,
) -> bool:
    try:
        find_exportable(session, storage, settings, version.id, project_id=project_id)
    except DomainError:
        return False
    return True
