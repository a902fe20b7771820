"""/v1/fine_tuning/jobs: OpenAI's surface for fine-tuning jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.deps import CallerDep, CustomerDep, SessionDep, StorageDep
from api.jobs import service
from api.jobs.replay import ReplayDep
from api.jobs.schemas import CheckpointObject, CreateJob, EventObject, JobObject
from api.jobs.wire import show_checkpoints, show_job, show_jobs
from api.schemas import After, Listing, PageLimit
from models.errors import DomainError
from models.job import JobKind

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

KIND = JobKind.FINETUNE
MAX_FILTERS = 16
DOCUMENTED: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "description": "metadata[key]=value selects jobs with that label.",
        }
    ]
}


@router.post("")
def create(
    body: CreateJob,
    caller: CustomerDep,
    session: SessionDep,
    storage: StorageDep,
    replay: ReplayDep,
) -> JobObject:
    """Start a fine-tuning job on an aligned model."""
    job = service.create_finetune(session, storage, caller.project, body, replay)
    return show_job(session, job)


@router.get("", openapi_extra=DOCUMENTED)
def list_jobs(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: PageLimit = 20,
    metadata: Annotated[str | None, Query(include_in_schema=False)] = None,
) -> Listing[JobObject]:
    """List fine-tuning jobs, newest first; operators see every project's."""
    if metadata not in (None, "null"):
        raise DomainError("Write metadata[key]=value, or metadata=null.", param="metadata")
    jobs, has_more = service.list_jobs(
        session,
        KIND,
        project_id=caller.visible_project_id,
        after=after,
        limit=limit,
        metadata=_metadata_filter(request),
        without_metadata=metadata == "null",
    )
    return Listing(data=show_jobs(session, jobs), has_more=has_more)


@router.get("/{job_id}")
def retrieve(job_id: str, caller: CallerDep, session: SessionDep) -> JobObject:
    """Show one job."""
    job = service.get_job(session, KIND, job_id, project_id=caller.visible_project_id)
    return show_job(session, job)


@router.post("/{job_id}/cancel")
def cancel(job_id: str, caller: CallerDep, session: SessionDep, storage: StorageDep) -> JobObject:
    """Cancel a job that has not ended."""
    job = service.cancel_job(
        session, storage, KIND, job_id, project_id=caller.visible_project_id, by=caller.key
    )
    return show_job(session, job)


@router.post("/{job_id}/pause")
def pause(job_id: str, caller: CallerDep, session: SessionDep) -> JobObject:
    """Pause a job. A running one stops at its next step; `state` says `pausing`, then `paused`."""
    job = service.pause_job(session, KIND, job_id, project_id=caller.visible_project_id)
    return show_job(session, job)


@router.post("/{job_id}/resume")
def resume(job_id: str, caller: CallerDep, session: SessionDep) -> JobObject:
    """Go on with a paused job where it stopped, with the numbers of a run that was never paused."""
    job = service.resume_job(session, KIND, job_id, project_id=caller.visible_project_id)
    return show_job(session, job)


@router.get("/{job_id}/events")
def events(
    job_id: str,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: PageLimit = 20,
) -> Listing[EventObject]:
    """Read a job's log, newest first."""
    job = service.get_job(session, KIND, job_id, project_id=caller.visible_project_id)
    found, has_more = service.list_events(session, job, after=after, limit=limit)
    return Listing(data=[EventObject.of(event) for event in found], has_more=has_more)


@router.get("/{job_id}/checkpoints")
def checkpoints(
    job_id: str,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: PageLimit = 10,
) -> Listing[CheckpointObject]:
    """List where a job stood at the end of each epoch, newest first, and which of them can be used."""
    job = service.get_job(session, KIND, job_id, project_id=caller.visible_project_id)
    found, has_more = service.list_checkpoints(session, job, after=after, limit=limit)
    return Listing(data=show_checkpoints(session, found), has_more=has_more)


def _metadata_filter(request: Request) -> dict[str, str]:
    wanted = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if len(wanted) > MAX_FILTERS:
        raise DomainError(f"At most {MAX_FILTERS} labels can be asked for.", param="metadata")
    return wanted
