"""/v1/alignment/jobs: hardening a base against harmful fine-tuning. For operators."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.alignment.schemas import CreateAlignment
from api.alignment.service import create_alignment
from api.deps import ProviderDep, SessionDep, StorageDep, require_provider
from api.jobs import service
from api.jobs.replay import ReplayDep
from api.jobs.schemas import EventObject, JobObject
from api.jobs.wire import show_job, show_jobs
from api.schemas import After, Listing, PageLimit
from models.job import JobKind

router = APIRouter(
    prefix="/v1/alignment/jobs", tags=["alignment"], dependencies=[Depends(require_provider)]
)

KIND = JobKind.ALIGN


@router.post("")
def create(
    body: CreateAlignment, caller: ProviderDep, session: SessionDep, replay: ReplayDep
) -> JobObject:
    """Start an alignment job on a registered base."""
    return show_job(session, create_alignment(session, caller.key, body, replay))


@router.get("")
def list_jobs(
    session: SessionDep, after: After = None, limit: PageLimit = 20
) -> Listing[JobObject]:
    """List alignment jobs, newest first."""
    jobs, has_more = service.list_jobs(session, KIND, project_id=None, after=after, limit=limit)
    return Listing(data=show_jobs(session, jobs), has_more=has_more)


@router.get("/{job_id}")
def retrieve(job_id: str, session: SessionDep) -> JobObject:
    """Show one alignment job."""
    return show_job(session, service.get_job(session, KIND, job_id, project_id=None))


@router.post("/{job_id}/cancel")
def cancel(job_id: str, caller: ProviderDep, session: SessionDep, storage: StorageDep) -> JobObject:
    """Cancel an alignment job that has not ended."""
    return show_job(
        session, service.cancel_job(session, storage, KIND, job_id, project_id=None, by=caller.key)
    )


@router.post("/{job_id}/pause")
def pause(job_id: str, session: SessionDep) -> JobObject:
    """Pause an alignment job: at once if it is queued, else at its worker's next step."""
    return show_job(session, service.pause_job(session, KIND, job_id, project_id=None))


@router.post("/{job_id}/resume")
def resume(job_id: str, session: SessionDep) -> JobObject:
    """Go on with a paused alignment job where it stopped."""
    return show_job(session, service.resume_job(session, KIND, job_id, project_id=None))


@router.get("/{job_id}/events")
def events(
    job_id: str,
    session: SessionDep,
    after: After = None,
    limit: PageLimit = 20,
) -> Listing[EventObject]:
    """Read an alignment job's log, newest first."""
    job = service.get_job(session, KIND, job_id, project_id=None)
    found, has_more = service.list_events(session, job, after=after, limit=limit)
    return Listing(data=[EventObject.of(event) for event in found], has_more=has_more)
