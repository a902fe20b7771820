"""What stands under a job's numbers: its training rows and the answers to test prompts, one by one.

A page shows no text until somebody asks for it by its button; that reading is an entry of the audit log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session
from starlette.responses import Response

from api.dashboard.jobs.job_page import find_job
from api.dashboard.pages import render
from api.dashboard.viewer import CheckedForm, Viewer, ViewerDep
from api.deps import SessionDep, StorageDep
from api.safety import service
from api.safety.schemas import DataRiskRow
from models.answers import AnswerVerdict
from models.data_risk import ScreenedRow
from models.errors import Forbidden
from models.job import Job, JobKind
from models.model_version import get_version
from models.storage import Storage

router = APIRouter()
ROWS = 50
MAX_LINE = 2**31 - 1
VERDICTS: tuple[AnswerVerdict, ...] = ("harmful", "incoherent", "refused", "answered")


class AskedRows(BaseModel):
    """Which rows of a training file."""

    after: Annotated[int, Field(ge=0, le=MAX_LINE)] = 0
    flagged: Literal["", "yes", "no"] = ""


class AskedAnswers(BaseModel):
    """Which answers of an evaluation."""

    after: Annotated[int, Field(ge=0, le=MAX_LINE)] = 0
    verdict: AnswerVerdict | Literal[""] = ""


@dataclass(frozen=True, slots=True)
class RowLine:
    """One row, with its texts once they were asked for."""

    row: DataRiskRow
    #: By whom (a role, or the field of the row) and what.
    texts: tuple[tuple[str, str], ...]


@router.get("/jobs/{job_id}/data")
def show_rows(
    request: Request,
    session: SessionDep,
    viewer: ViewerDep,
    job_id: str,
    asked: Annotated[AskedRows, Query()],
) -> Response:
    """Show what the judges say of the training rows."""
    job = find_job(session, viewer.visible_project_id, job_id)
    return _rows_page(request, session, viewer, job, asked, storage=None)


@router.post("/jobs/{job_id}/data", dependencies=[CheckedForm])
def show_row_texts(
    request: Request,
    session: SessionDep,
    storage: StorageDep,
    viewer: ViewerDep,
    job_id: str,
    asked: Annotated[AskedRows, Form()],
) -> Response:
    """Show the same with the texts, which is audited when it is not their own customer who reads."""
    job = find_job(session, viewer.visible_project_id, job_id)
    if viewer.is_staff and not viewer.is_reviewer:
        raise Forbidden("Only a reviewer reads the rows of a customer.")
    return _rows_page(request, session, viewer, job, asked, storage=storage)


@router.get("/jobs/{job_id}/answers")
def show_answers(
    request: Request,
    session: SessionDep,
    storage: StorageDep,
    viewer: ViewerDep,
    job_id: str,
    asked: Annotated[AskedAnswers, Query()],
) -> Response:
    """Show what each judge says of each answer."""
    job = _find_for_reviewer(session, viewer, job_id)
    return _answers_page(request, session, storage, viewer, job, asked)


@router.post("/jobs/{job_id}/answers", dependencies=[CheckedForm])
def show_answer_texts(
    request: Request,
    session: SessionDep,
    storage: StorageDep,
    viewer: ViewerDep,
    job_id: str,
    asked: Annotated[AskedAnswers, Form()],
) -> Response:
    """Show the same with prompts and answers, which is audited."""
    job = _find_for_reviewer(session, viewer, job_id)
    return _answers_page(request, session, storage, viewer, job, asked, with_texts=True)


def _find_for_reviewer(session: Session, viewer: Viewer, job_id: str) -> Job:
    if not viewer.is_reviewer:
        raise Forbidden("Test prompts and their answers are for reviewers.")
    return find_job(session, None, job_id)


def _rows_page(
    request: Request,
    session: Session,
    viewer: Viewer,
    job: Job,
    asked: AskedRows,
    *,
    storage: Storage | None,
) -> Response:
    screening = service.get_screening(session, job)
    flagged = {"": None, "yes": True, "no": False}[asked.flagged]
    rows, has_more = service.list_rows(
        session, screening, after=asked.after, limit=ROWS, flagged=flagged
    )
    texts = _texts(session, storage, job, rows, viewer) if storage is not None else {}
    return render(
        request,
        "job_data.html",
        viewer=viewer,
        job=job,
        screening=screening,
        asked=asked,
        lines=[RowLine(DataRiskRow.of(row, screening), texts.get(row.line, ())) for row in rows],
        next_after=rows[-1].line if has_more else None,
        with_texts=storage is not None,
    )


def _texts(
    session: Session, storage: Storage, job: Job, rows: Sequence[ScreenedRow], viewer: Viewer
) -> dict[int, tuple[tuple[str, str], ...]]:
    by = viewer.key if viewer.is_staff else None
    found = service.read_texts(session, storage, job, rows, by=by)
    return {line: tuple(_parts(row)) for line, row in found.items()}


def _parts(row: dict[str, object]) -> list[tuple[str, str]]:
    """Give a row's texts by speaker: chat messages one by one, of every other form each field."""
    parts: list[tuple[str, str]] = []
    for name, value in row.items():
        if isinstance(value, list):
            messages = [entry for entry in value if isinstance(entry, dict)]
            parts += [(str(m.get("role", name)), str(m.get("content", ""))) for m in messages]
        elif isinstance(value, dict):
            parts += _parts(value)
        else:
            parts.append((name, str(value)))
    return parts


def _answers_page(
    request: Request,
    session: Session,
    storage: Storage,
    viewer: Viewer,
    job: Job,
    asked: AskedAnswers,
    *,
    with_texts: bool = False,
) -> Response:
    version = get_version(session, job.result_model_id, project_id=None)
    page = service.list_answers(
        session,
        storage,
        version,
        # Any other job's model is shown by what its gate decided on.
        job_id=job.id if job.kind == JobKind.EVALUATE else None,
        after=asked.after,
        limit=ROWS,
        verdict=asked.verdict or None,
    )
    if with_texts:
        service.note_answers_read(session, version, page, by=viewer.key)
    return render(
        request,
        "job_answers.html",
        viewer=viewer,
        job_id=job.id,
        version=version,
        asked=asked,
        page=page,
        verdicts=VERDICTS,
        next_after=page.answers[-1][0] if page.has_more else None,
        with_texts=with_texts,
    )
