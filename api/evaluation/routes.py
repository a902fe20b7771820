"""/v1/evaluation: measuring registered models anew. For operators."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.deps import ProviderDep, SessionDep, StorageDep, require_provider
from api.evaluation.schemas import CreateEvaluation
from api.evaluation.service import create_evaluation
from api.jobs import service
from api.jobs.replay import ReplayDep
from api.jobs.schemas import EventObject, JobObject
from api.jobs.wire import show_job, show_jobs
from api.schemas import After, Listing, PageLimit
from models.job import JobKind

router = APIRouter(
    prefix="/v1/evaluation", tags=["evaluation"], dependencies=[Depends(require_provider)]
)

KIND = JobKind.EVALUATE


@router.post("/jobs")
def create(
    body: CreateEvaluation, caller: ProviderDep, session: SessionDep, replay: ReplayDep
) -> JobObject:
    """Start measuring a model with the safety set of its lineage. Its gate stays as it is, whatever comes out."""
    return show_job(session, create_evaluation(session, caller.key, body, replay))


@router.get("/jobs")
def list_jobs(
    session: SessionDep, after: After = None, limit: PageLimit = 20
) -> Listing[JobObject]:
    """List evaluation jobs, newest first."""
    jobs, has_more = service.list_jobs(session, KIND, project_id=None, after=after, limit=limit)
    return Listing(data=show_jobs(session, jobs), has_more=has_more)


@router.get("/jobs/{job_id}")
def retrieve(job_id: str, session: SessionDep) -> JobObject:
    """Show one evaluation job; `safety` has what it measured."""
    return show_job(session, service.get_job(session, KIND, job_id, project_id=None))


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: str, caller: ProviderDep, session: SessionDep, storage: StorageDep) -> JobObject:
    """Cancel an evaluation job that has not ended."""
    return show_job(
        session, service.cancel_job(session, storage, KIND, job_id, project_id=None, by=caller.key)
    )


@router.get("/jobs/{job_id}/events")
def events(
    job_id: str,
    session: SessionDep,
    after: After = None,
    limit: PageLimit = 20,
) -> Listing[EventObject]:
    """Read an evaluation job's log, newest first."""
    job = service.get_job(session, KIND, job_id, project_id=None)
    found, has_more = service.list_events(session, job, after=after, limit=limit)
    return Listing(data=[EventObject.of(event) for event in found], has_more=has_more)
