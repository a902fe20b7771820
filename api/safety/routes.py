"""Evidence: a job's data risk, a model's signed safety report, and the public keys to check it with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.deps import CallerDep, SessionDep, SettingsDep, StorageDep
from api.jobs.service import get_job
from api.registry.service import get_model
from api.safety import service
from api.safety.schemas import DataRiskPage, DataRiskRow, SigningKey
from api.schemas import Listing, PageLimit
from models.job import JobKind

router = APIRouter(tags=["safety"])

MAX_LINE = 2**31 - 1
SIGNED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The signed report, in its canonical form.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


@router.get("/v1/fine_tuning/jobs/{job_id}/data_risk")
def data_risk(
    job_id: str,
    caller: CallerDep,
    session: SessionDep,
    after: Annotated[int, Query(ge=0, le=MAX_LINE, description="The last line seen.")] = 0,
    limit: PageLimit = 100,
    flagged: Annotated[bool | None, Query(description="Flagged rows alone, or the others.")] = None,
) -> DataRiskPage:
    """Read what the judges say of a job's training rows, line by line, without their text."""
    job = get_job(session, JobKind.FINETUNE, job_id, project_id=caller.visible_project_id)
    screening = service.get_screening(session, job)
    rows, has_more = service.list_rows(
        session, screening, after=after, limit=limit, flagged=flagged
    )
    return DataRiskPage(
        data=[DataRiskRow.of(row, screening) for row in rows],
        has_more=has_more,
        summary=screening.to_wire(),
    )


@router.get("/v1/models/{model:path}/safety_report", response_class=Response, responses=SIGNED)
def safety_report(
    model: str,
    caller: CallerDep,
    session: SessionDep,
    storage: StorageDep,
    settings: SettingsDep,
) -> Response:
    """Read the signed safety report on a released model; `titer verify` checks it."""
    version = get_model(session, model, project_id=caller.visible_project_id)
    return Response(
        service.signed_report(session, storage, settings, version),
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )


@router.get("/v1/safety/keys")
def signing_keys(settings: SettingsDep) -> Listing[SigningKey]:
    """List the public keys that safety reports are signed with. Anybody may read them."""
    signing = service.signer(settings)
    return Listing(data=[SigningKey.of(signing.verifying_key)] if signing else [])
