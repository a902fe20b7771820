"""Making certification jobs, and finding certificates. All else is what `api.jobs.service` does for every job."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.certification.schemas import CreateCertification
from api.jobs.replay import Replay, find_replayed, request_hash
from api.jobs.service import ModelNotAligned, start, unfinished_job
from models.api_key import ApiKey
from models.audit import record
from models.errors import Conflict
from models.job import Job, JobKind
from models.model_version import VersionKind, get_version
from models.safety_set import CERTIFICATION_FILES
from models.storage import Storage
from models.stored_certificate import (
    CertificateNotFound,
    StoredCertificate,
    latest_certificates,
)


class CertificationRunning(Conflict):
    """The model is being certified already."""

    code = "certification_running"


def create_certification(
    session: Session, storage: Storage, by: ApiKey, asked: CreateCertification, replay: Replay
) -> Job:
    """Make a certification job, or give the one that this same request made before.

    Raises:
        ModelNotFound: there is no such model.
        ModelNotAligned: it is a base or a tuned model.
        NoCertificationRows: its safety set has no rows for simulated customers.
        TooFewCertificationRows: it has too few for the plan.
        CertificationRunning: a certification of the model has not ended.
    """
    request_sha256 = request_hash(JobKind.CERTIFY, asked)
    earlier = find_replayed(session, by.project_id, replay, request_sha256)
    if earlier is not None:
        return earlier
    version = get_version(session, asked.model, project_id=None)
    # Not to be deleted meanwhile, nor certified by two requests at once.
    session.refresh(version, with_for_update=True)
    version = get_version(session, asked.model, project_id=None)
    if version.kind != VersionKind.ALIGNED:
        raise ModelNotAligned(
            f"The model {version.id!r} is not an aligned one; only these are certified.",
            param="model",
        )
    plan = asked.chosen_plan
    plan.check_supply(_count_rows(storage, version.safety_prefix))
    running = unfinished_job(session, JobKind.CERTIFY, version.id)
    if running is not None:
        raise CertificationRunning(
            f"The job {running} certifies this model and has not ended.", param="model"
        )
    job = Job(
        project_id=by.project_id,
        kind=JobKind.CERTIFY,
        model_id=version.id,
        result_model_id=version.id,
        seed=plan.seeds[0],
        recipe=plan.model_dump(mode="json"),
        tags=asked.metadata or {},
        replay_key=replay.key,
        request_sha256=request_sha256,
    )
    start(session, job)
    record(
        session,
        actor=by,
        action="certification.started",
        subject=("job", job.id),
        details={"model": version.id, "plan": plan.name, "plan_hash": plan.hash},
    )
    return job


def find_certificate(
    session: Session, model_id: str, *, job_id: str | None = None
) -> StoredCertificate:
    """Give a model's newest certificate, or what one certification or drill found.

    Raises:
        ModelNotFound: there is no such model.
        CertificateNotFound: it was never certified, or not by this job.
    """
    version = get_version(session, model_id, project_id=None)
    if job_id is None:
        found = latest_certificates(session, [version.id]).get(version.id)
    else:
        found = session.scalar(
            select(StoredCertificate).where(
                StoredCertificate.job_id == job_id, StoredCertificate.version_id == version.id
            )
        )
    if found is None:
        by = "" if job_id is None else f" by the job {job_id[:64]!r}"
        raise CertificateNotFound(
            f"The model {version.id!r} has no certificate{by}. Start one with POST /v1/certification/jobs.",
            param="model" if job_id is None else "job",
        )
    return found


def _count_rows(storage: Storage, prefix: str) -> dict[str, int]:
    keys = {name: f"{prefix}/{name}" for name in CERTIFICATION_FILES}
    return {
        name: sum(bool(line.strip()) for line in storage.lines(key))
        for name, key in keys.items()
        if storage.exists(key)
    }
