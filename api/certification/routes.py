"""/v1/certification: attacking aligned models with simulated customers, and their certificates. For operators."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from api.certification.report import read_report
from api.certification.schemas import CreateCertification, PlanObject
from api.certification.service import create_certification, find_certificate
from api.deps import ProviderDep, SessionDep, StorageDep, require_provider
from api.jobs.provider_routes import provider_job_routes
from api.jobs.replay import ReplayDep
from api.jobs.schemas import JobObject
from api.jobs.wire import show_job
from api.schemas import Identifier, Listing
from models.certification_plans import PLANS
from models.job import JobKind

router = provider_job_routes(JobKind.CERTIFY)
# A model's name may hold slashes: these must be asked before `/v1/models/{model:path}`.
certificates = APIRouter(tags=["certification"], dependencies=[Depends(require_provider)])


@certificates.get("/v1/certification/plans")
def list_plans() -> Listing[PlanObject]:
    """List the plans that have a name, with what each costs."""
    return Listing(data=[PlanObject.of(plan) for plan in PLANS.values()])


@router.post("")
def create(
    body: CreateCertification,
    caller: ProviderDep,
    session: SessionDep,
    storage: StorageDep,
    replay: ReplayDep,
) -> JobObject:
    """Start certifying an aligned model. Its gate stays as it is, whatever comes out."""
    return show_job(session, create_certification(session, storage, caller.key, body, replay))


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
