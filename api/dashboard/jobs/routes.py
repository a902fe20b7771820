"""The pages of jobs: the list, one job, its curves, and what a person may decide."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from pydantic import BaseModel, StringConstraints
from starlette.responses import JSONResponse, RedirectResponse, Response

from api.dashboard.jobs.job_list import Filters, list_jobs
from api.dashboard.jobs.job_page import find_job, read_curves, read_job_page
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
Word = TypeVar("Word", JobStatus, Gate, JobKind)
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=256)]

ReasonField = Annotated[str, Form(min_length=1, max_length=1000)]


class UnknownFilter(DomainError):
    """There is no such status, gate, kind or day to filter by."""

    code = "unknown_filter"


class AskedFilters(BaseModel):
    """The filters as a form sends them: a field left open is an empty text."""

    status: Text = ""
    gate: Text = ""
    kind: Text = ""
    tenant: Text = ""
    base: Text = ""
    search: Text = ""
    since: Text = ""
    until: Text = ""
    before: Text = ""

    def read(self, *, is_staff: bool) -> Filters:
        """Read them. A customer has one tenant, whatever it asks for.

        Raises:
            UnknownFilter: one of them is no such word, or no day.
        """
        return Filters(
            status=_word(JobStatus, self.status),
            gate=_word(Gate, self.gate),
            kind=_word(JobKind, self.kind),
            tenant=(self.tenant or None) if is_staff else None,
            base=self.base or None,
            search=self.search or None,
            since=_day(self.since),
            until=_day(self.until),
            before=self.before or None,
        )


def _word(words: type[Word], value: str) -> Word | None:
    try:
        return words(value) if value else None
    except ValueError as error:
        raise UnknownFilter from error


def _day(value: str) -> date | None:
    try:
        day = date.fromisoformat(value) if value else None
    except ValueError as error:
        raise UnknownFilter from error
    if day is not None and not 2000 <= day.year <= 2999:
        raise UnknownFilter
    return day


@router.get("/jobs")
def show_jobs(
    request: Request,
    session: SessionDep,
    viewer: ViewerDep,
    asked: Annotated[AskedFilters, Query()],
) -> Response:
    """Show the list of jobs, or its live part."""
    filters = asked.read(is_staff=viewer.is_staff)
    return render(
        request,
        "_jobs.html" if is_partial(request) else "jobs.html",
        viewer=viewer,
        jobs=list_jobs(session, viewer.visible_project_id, filters),
        filters=filters,
        address=_address,
        statuses=list(JobStatus),
        gates=list(Gate),
        kinds=list(JobKind),
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


@router.post("/jobs/{job_id}/pause", dependencies=[CheckedForm])
def pause_job(session: SessionDep, viewer: ViewerDep, job_id: str) -> Response:
    """Pause a job."""
    job = find_job(session, viewer.visible_project_id, job_id)
    job_service.pause_job(session, JobKind(job.kind), job.id, project_id=job.project_id)
    return _back_to(job)


@router.post("/jobs/{job_id}/resume", dependencies=[CheckedForm])
def resume_job(session: SessionDep, viewer: ViewerDep, job_id: str) -> Response:
    """Go on with a paused job."""
    job = find_job(session, viewer.visible_project_id, job_id)
    job_service.resume_job(session, JobKind(job.kind), job.id, project_id=job.project_id)
    return _back_to(job)


@router.post("/jobs/{job_id}/reevaluate", dependencies=[CheckedForm])
def reevaluate_job(
    session: SessionDep, viewer: ViewerDep, job_id: str, reason: ReasonField
) -> Response:
    """Have the kept model of a job measured anew."""
    if not viewer.is_reviewer:
        raise Forbidden("Only a reviewer has a model measured again.")
    job = find_job(session, None, job_id)
    review_service.reevaluate(session, job.id, reason, by=viewer.key)
    return _back_to(job)


@router.post("/jobs/{job_id}/review", dependencies=[CheckedForm])
def review_job(
    session: SessionDep,
    viewer: ViewerDep,
    job_id: str,
    decision: Annotated[Literal["release", "reject"], Form()],
    reason: ReasonField,
) -> Response:
    """Release or reject the held data or model of a job, with the reason."""
    if not viewer.is_reviewer:
        raise Forbidden("Only a reviewer decides on held data and models.")
    decided = Decide(reason=reason)
    job = review_service.decide(session, job_id, decision, decided.reason, by=viewer.key)
    return _back_to(job)


def _back_to(job: Job) -> Response:
    return RedirectResponse(f"/dashboard/jobs/{job.id}", status_code=303)


def _address(filters: Filters, **changed: str | None) -> str:
    """Give the list's address with some filters changed; a page further back never survives that."""
    asked = {**asdict(filters), "before": None, **changed}
    query = urlencode({name: str(value) for name, value in asked.items() if value})
    return "/dashboard/jobs" + (f"?{query}" if query else "")
