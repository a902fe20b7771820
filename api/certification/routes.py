"""/v1/certification: attacking aligned models with simulated customers, and their certificates. For operators."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from api.certification.report import read_report
from api.certification.schemas import CreateCertification, PlanObject
from api.certification.service import create_certification, find_certificate
from api.deps import ProviderDep, SessionDep, StorageDep, require_provider
from api.jobs import service
from api.jobs.replay import ReplayDep
from api.jobs.schemas import EventObject, JobObject
from api.jobs.wire import show_job, show_jobs
from api.schemas import After, Identifier, Listing, PageLimit
from models.certification_plans import PLANS
from models.job import JobKind

router = APIRouter(
    prefix="/v1/certification", tags=["certification"], dependencies=[Depends(require_provider)]
)
# Apart, because a model's name may hold slashes: this one must be asked before `/v1/models/{model:path}`.
certificates = APIRouter(tags=["certification"], dependencies=[Depends(require_provider)])

KIND = JobKind.CERTIFY


@router.get("/plans")
def list_plans() -> Listing[PlanObject]:
    """List the plans that have a name, with what each costs."""
    return Listing(data=[PlanObject.of(plan) for plan in PLANS.values()])


@router.post("/jobs")
def create(
    body: CreateCertification,
    caller: ProviderDep,
    session: SessionDep,
    storage: StorageDep,
    replay: ReplayDep,
) -> JobObject:
    """Start certifying an aligned model. Its gate stays as it is, whatever comes out."""
    return show_job(session, create_certification(session, storage, caller.key, body, replay))


@router.get("/jobs")
def list_jobs(
    session: SessionDep, after: After = None, limit: PageLimit = 20
) -> Listing[JobObject]:
    """List certification jobs, newest first."""
    jobs, has_more = service.list_jobs(session, KIND, project_id=None, after=after, limit=limit)
    return Listing(data=show_jobs(session, jobs), has_more=has_more)


@router.get("/jobs/{job_id}")
def retrieve(job_id: str, session: SessionDep) -> JobObject:
    """Show one certification job."""
    return show_job(session, service.get_job(session, KIND, job_id, project_id=None))


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: str, caller: ProviderDep, session: SessionDep, storage: StorageDep) -> JobObject:
    """Cancel a certification job that has not ended."""
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
    """Read a certification job's log, newest first."""
    job = service.get_job(session, KIND, job_id, project_id=None)
    found, has_more = service.list_events(session, job, after=after, limit=limit)
    return Listing(data=[EventObject.of(event) for event in found], has_more=has_more)


@certificates.get("/v1/models/{model:path}/certificate")
def certificate(
    model: str,
    session: SessionDep,
    storage: StorageDep,
    form: Annotated[
        Literal["json", "html", "png"],
        Query(alias="format", description="The data, a page to read, or the curves as a picture."),
    ] = "json",
    job: Annotated[
        Identifier | None,
        Query(
            description="The certification or drill that made it; by default the newest certificate."
        ),
    ] = None,
) -> Response:
    """Read a model's newest certificate, or what one certification job found."""
    return read_report(storage, find_certificate(session, model, job_id=job), form)
