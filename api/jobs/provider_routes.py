"""What operators may do with their jobs of any kind: list, show, cancel, pause, resume, read the log."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.deps import ProviderDep, SessionDep, StorageDep, require_provider
from api.jobs import service
from api.jobs.schemas import EventObject, JobObject
from api.jobs.wire import show_job, show_jobs
from api.schemas import After, Listing, PageLimit
from models.job import JobKind


def provider_job_routes(kind: JobKind) -> APIRouter:
    """Make the routes for jobs of one kind; what makes such a job is added to them."""
    noun = service.NOUNS[kind]
    router = APIRouter(
        prefix=f"/v1/{noun}/jobs", tags=[noun], dependencies=[Depends(require_provider)]
    )

    @router.get("", description=f"List {noun} jobs, newest first.")
    def list_jobs(
        session: SessionDep, after: After = None, limit: PageLimit = 20
    ) -> Listing[JobObject]:
        jobs, has_more = service.list_jobs(session, kind, project_id=None, after=after, limit=limit)
        return Listing(data=show_jobs(session, jobs), has_more=has_more)

    @router.get("/{job_id}", description=f"Show one {noun} job.")
    def retrieve(job_id: str, session: SessionDep) -> JobObject:
        return show_job(session, service.get_job(session, kind, job_id, project_id=None))

    @router.post("/{job_id}/cancel", description=f"Cancel the {noun} job, if it has not ended.")
    def cancel(
        job_id: str, caller: ProviderDep, session: SessionDep, storage: StorageDep
    ) -> JobObject:
        job = service.cancel_job(session, storage, kind, job_id, project_id=None, by=caller.key)
        return show_job(session, job)

    @router.post(
        "/{job_id}/pause",
        description=f"Pause the {noun} job: at once if it is queued, else at its worker's next step.",
    )
    def pause(job_id: str, session: SessionDep) -> JobObject:
        return show_job(session, service.pause_job(session, kind, job_id, project_id=None))

    @router.post(
        "/{job_id}/resume",
        description=f"Go on with the paused {noun} job, from what it has kept (an evaluation keeps nothing).",
    )
    def resume(job_id: str, session: SessionDep) -> JobObject:
        return show_job(session, service.resume_job(session, kind, job_id, project_id=None))

    @router.get("/{job_id}/events", description=f"Read the {noun} job's log, newest first.")
    def events(
        job_id: str, session: SessionDep, after: After = None, limit: PageLimit = 20
    ) -> Listing[EventObject]:
        job = service.get_job(session, kind, job_id, project_id=None)
        found, has_more = service.list_events(session, job, after=after, limit=limit)
        return Listing(data=[EventObject.of(event) for event in found], has_more=has_more)

    return router
