"""The review queue: what waits for a person, the evidence of one, and the decision."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from pydantic import StringConstraints
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from api.dashboard.pages import is_partial, render
from api.dashboard.reviews.queue import read_queue
from api.dashboard.reviews.review_page import Standing, read_review, read_standing
from api.dashboard.viewer import CheckedForm, StaffDep
from api.deps import SessionDep
from api.reviews import service
from models.api_key import ApiKey
from models.errors import Forbidden, NotFound
from models.job import Job
from models.review import MAX_REASON

router = APIRouter(prefix="/reviews")


@router.get("")
def show_queue(
    request: Request,
    session: SessionDep,
    viewer: StaffDep,
    after: str | None = None,
    done: str | None = None,
) -> Response:
    """Show the queue, or its live part."""
    return render(
        request,
        "_reviews.html" if is_partial(request) else "reviews.html",
        viewer=viewer,
        queue=read_queue(session, after),
        after=after,
        done=_read_done(session, done, viewer.key),
    )


@router.get("/{review_id}")
def show_review(
    request: Request,
    session: SessionDep,
    viewer: StaffDep,
    review_id: str,
    done: str | None = None,
) -> Response:
    """Show the evidence of one review; while the page is open, only where the decision is."""
    if is_partial(request):
        standing = read_standing(session, review_id, viewer.key)
        return render(request, "_review_standing.html", viewer=viewer, standing=standing)
    page = read_review(session, review_id, viewer.key)
    return render(
        request,
        "review.html",
        viewer=viewer,
        page=page,
        standing=page.standing,
        done=_read_done(session, done, viewer.key),
    )


@router.post("/{review_id}", dependencies=[CheckedForm])
def decide(
    session: SessionDep,
    viewer: StaffDep,
    review_id: str,
    decision: Annotated[Literal["release", "reject", "reevaluate"], Form()],
    reason: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_REASON),
        Form(),
    ],
) -> Response:
    """Carry out a decision, and go on to what waits next."""
    if not viewer.is_reviewer:
        raise Forbidden("Only a reviewer decides on what is held.")
    if decision == "reevaluate":
        service.reevaluate(session, review_id, reason, by=viewer.key)
    else:
        service.decide(session, review_id, decision, reason, by=viewer.key)
    following = _following(session, service.get_review(session, review_id))
    address = f"/dashboard/reviews/{following}" if following else "/dashboard/reviews"
    return RedirectResponse(f"{address}?done={review_id}", status_code=303)


def _following(session: Session, job: Job) -> str | None:
    """Give what waits next: after this one, or else from the front of the queue."""
    _, after = service.neighbours(session, job)
    if after is not None:
        return after
    jobs, _ = service.list_reviews(session, after=None, limit=1)
    return next((each.id for each in jobs if each.id != job.id), None)


def _read_done(session: Session, review_id: str | None, by: ApiKey) -> Standing | None:
    """Read how the one before ended, which the page says; an address that names nothing says nothing."""
    try:
        return read_standing(session, review_id, by) if review_id else None
    except NotFound:
        return None
