"""Evidence: a job's data risk, a model's signed safety report, and the public keys to check it with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from api.deps import CallerDep, ReviewerDep, SessionDep, SettingsDep, StorageDep
from api.jobs.service import get_job
from api.registry.service import get_model
from api.safety import service
from api.safety.schemas import (
    AnswerObject,
    AnswerPage,
    DataRiskPage,
    DataRiskRow,
    DataRiskRowText,
    SigningKey,
)
from api.schemas import Listing, PageLimit
from models.answers import AnswerVerdict
from models.errors import Forbidden
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


@router.get("/v1/fine_tuning/jobs/{job_id}/data_risk/{line}")
def data_risk_row(
    job_id: str,
    line: Annotated[int, Path(ge=1, le=MAX_LINE)],
    caller: CallerDep,
    session: SessionDep,
    storage: StorageDep,
) -> DataRiskRowText:
    """Read one screened row with its text. When a reviewer reads a customer's, the audit log says so."""
    job = get_job(session, JobKind.FINETUNE, job_id, project_id=caller.visible_project_id)
    if caller.is_staff and not caller.is_reviewer:
        raise Forbidden("Only a reviewer reads the rows of a customer.")
    screening = service.get_screening(session, job)
    row = service.get_row(session, job, line)
    by = caller.key if caller.is_staff else None
    texts = service.read_texts(session, storage, job, [row], by=by)
    return DataRiskRowText(**DataRiskRow.of(row, screening).model_dump(), row=texts[line])


@router.get("/v1/models/{model:path}/answers")
def answers(
    model: str,
    caller: ReviewerDep,
    session: SessionDep,
    storage: StorageDep,
    after: Annotated[int, Query(ge=0, le=MAX_LINE, description="The last answer seen.")] = 0,
    limit: PageLimit = 50,
    verdict: Annotated[
        AnswerVerdict | None, Query(description="Those of which the deciding judge says so.")
    ] = None,
    job: Annotated[
        str | None, Query(max_length=64, description="What this job measured, and no other.")
    ] = None,
) -> AnswerPage:
    """Read what a model answered when the gate decided on it, or in a job of your choice. Readings are audited."""
    version = get_model(session, model, project_id=None)
    page = service.list_answers(
        session, storage, version, job_id=job, after=after, limit=limit, verdict=verdict
    )
    service.note_answers_read(session, version, page, by=caller.key)
    data = [AnswerObject.of(place, answer) for place, answer in page.answers]
    return AnswerPage(data=data, has_more=page.has_more, evaluation=page.evaluation.id)


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
