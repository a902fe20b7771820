"""What ended jobs leave in the storage, and until when.

Of a job that failed or was cancelled the epochs' weights go after a while; those that the gate has released are
models in use, and stay. What a run could have gone on from goes with the job's end in any case, and here where
nobody was left to remove it. The numbers of a checkpoint stay for ever.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Select, exists, select
from sqlalchemy.orm import aliased

from models.audit import SERVICE, record
from models.base import utc_now
from models.job import TERMINAL, Job, JobStatus, lock_job
from models.job_checkpoint import RESUME, JobCheckpoint, resume_prefix
from models.model_version import Gate, ModelVersion
from models.session import SessionFactory
from models.storage import Storage

MAX_JOBS = 1_000


def drop_checkpoints(sessions: SessionFactory, storage: Storage, *, after: timedelta) -> int:
    """Remove the weights of the epochs of jobs that failed or were cancelled so long ago; count the jobs."""
    before = utc_now() - after
    with sessions() as session:
        ids = session.scalars(
            select(Job.id)
            .where(
                Job.status.in_((JobStatus.FAILED, JobStatus.CANCELLED)),
                Job.finished_at < before,
                _kept(Job.id).exists(),
            )
            .limit(MAX_JOBS)
        ).all()
    dropped = 0
    for job_id in ids:
        with sessions.begin() as session:
            job = lock_job(session, job_id)
            # A reviewer may have opened it again.
            if job.finished_at is None or job.finished_at >= before:
                continue
            versions = session.scalars(_kept(job_id).with_for_update()).all()
            if not versions:
                continue
            for version in versions:
                # The bytes first: where that fails, the next round finds the version again.
                storage.delete_folder(str(version.source["prefix"]))
                version.deleted_at = utc_now()
            record(
                session,
                actor=SERVICE,
                action="job.checkpoints_removed",
                subject=("job", job_id),
                project_id=job.project_id,
                details={"models": [version.id for version in versions]},
            )
            dropped += 1
    return dropped


def drop_resume_points(sessions: SessionFactory, storage: Storage) -> int:
    """Remove what runs of ended jobs could have gone on from; count the jobs."""
    names = storage.names(RESUME)
    with sessions() as session:
        ended = session.scalars(
            select(Job.id).where(Job.id.in_(names), Job.status.in_(TERMINAL))
        ).all()
    for job_id in ended:
        storage.delete_folder(resume_prefix(job_id))
    return len(ended)


def _kept(job_id: object) -> Select[ModelVersion]:
    """Select the epochs' versions of a job whose weights are there for nobody."""
    child = aliased(ModelVersion)
    return (
        select(ModelVersion)
        .join(JobCheckpoint, JobCheckpoint.version_name == ModelVersion.id)
        .where(
            JobCheckpoint.job_id == job_id,
            # A version that has a job is that job's model.
            ModelVersion.job_id.is_(None),
            ModelVersion.deleted_at.is_(None),
            ModelVersion.gate != Gate.RELEASED,
            ~exists().where(child.parent_id == ModelVersion.id, child.deleted_at.is_(None)),
        )
    )
