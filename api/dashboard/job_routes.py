"""The pages of jobs: the list, one job, its curves, and what a person may decide."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from api.dashboard.job_list import Filters, list_jobs
from api.dashboard.job_page import find_job, read_curves, read_job_page
from api.dashboard.pages import is_partial, render
from api.dashboard.viewer import CheckedForm, ViewerDep
from api.deps import SessionDep, StorageDep
from api.jobs import service as job_service
from api.reviews import service as review_service
from api.reviews.schemas import Decide
from models.errors import DomainError, Forbidden
from models.job import Job, JobKind, JobStatus
from models.model_version import Gate

router = APIRouter()
Word = TypeVar("Word", JobStatus, Gate)


class UnknownFilter(DomainError):
    """There is no such status or gate to filter by."""

    code = "unknown_filter"


@router.get("/")
def enter() -> Response:
    """Lead to the list of jobs."""
    return RedirectResponse("/dashboard/jobs", status_code=303)


@router.get("/jobs")
def show_jobs(
    request: Request,
    session: SessionDep,
    viewer: ViewerDep,
    status: str = "",
    gate: str = "",
    before: str = "",
) -> Response:
    """Show the list of jobs, or its live part."""
    filters = Filters(_word(JobStatus, status), _word(Gate, gate), before or None)
    return render(
        request,
        "_jobs.html" if is_partial(request) else "jobs.html",
        viewer=viewer,
        jobs=list_jobs(session, viewer.visible_project_id, filters),
        filters=filters,
        address=_address,
        statuses=list(JobStatus),
        gates=list(Gate),
    )


@router.get("/jobs/{job_id}")
def show_job(request: Request, session: SessionDep, viewer: ViewerDep, job_id: str) -> Response:
    """Show one job, or its live part."""
    job = find_job(session, viewer.visible_project_id, job_id)
    return render(
        request,
        "_job.html" if is_partial(request) else "job.html",
        viewer=viewer,
        page=read_job_page(session, job),
    )


@router.get("/jobs/{job_id}/curves.json")
def give_curves(session: SessionDep, viewer: ViewerDep, job_id: str) -> Response:
    """Give the training curves of a job."""
    return JSONResponse(read_curves(session, find_job(session, viewer.visible_project_id, job_id)))


@router.post("/jobs/{job_id}/cancel", dependencies=[CheckedForm])
def cancel_job(
    session: SessionDep, storage: StorageDep, viewer: ViewerDep, job_id: str
) -> Response:
    """Cancel a job that has not ended."""
    project_id = viewer.visible_project_id
    job = find_job(session, project_id, job_id)
    job_service.cancel_job(
        session, storage, JobKind(job.kind), job.id, project_id=project_id, by=viewer.key
    )
    return _back_to(job)


@router.post("/jobs/{job_id}/review", dependencies=[CheckedForm])
def review_job(
    session: SessionDep,
    viewer: ViewerDep,
    job_id: str,
    decision: Annotated[Literal["release", "reject"], Form()],
    reason: Annotated[str, Form(min_length=1, max_length=1000)],
) -> Response:
    """Release or reject the held data or model of a job, with the reason."""
    if not viewer.is_reviewer:
        raise Forbidden("Only a reviewer decides on held data and models.")
    decided = Decide(reason=reason)
    job = review_service.decide(session, job_id, decision, decided.reason, by=viewer.key)
    return _back_to(job)


def _back_to(job: Job) -> Response:
    return RedirectResponse(f"/dashboard/jobs/{job.id}", status_code=303)


def _word(words: type[Word], value: str) -> Word | None:
    try:
        return words(value) if value else None
    except ValueError as error:
        raise UnknownFilter from error


def _address(filters: Filters, **changed: str | None) -> str:
    """Give the list's address with some filters changed; a page further back never survives that."""
    asked = {"status": filters.status, "gate": filters.gate, **changed}
    query = urlencode({name: value for name, value in asked.items() if value})
    return "/dashboard/jobs" + (f"?{query}" if query else "")
