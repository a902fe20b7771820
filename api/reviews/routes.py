"""/v1/reviews: held data and models, and people's decisions on them; appeals; projects' cumulative risk."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.deps import CallerDep, CustomerDep, ReviewerDep, SessionDep, require_staff
from api.keys.service import ProjectNotFound
from api.reviews import service
from api.reviews.schemas import AppealObject, CreateAppeal, Decide, ReviewObject, RiskObject
from api.reviews.wire import show_appeal, show_review, show_reviews, show_risk
from api.schemas import After, Listing
from models.api_key import Project

router = APIRouter(tags=["reviews"])


@router.get("/v1/reviews", dependencies=[Depends(require_staff)])
def list_reviews(
    session: SessionDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Objects on one page.")] = 20,
) -> Listing[ReviewObject]:
    """List the models and training data that wait for a decision, oldest first, with what there is to decide on."""
    jobs, has_more = service.list_reviews(session, after=after, limit=limit)
    return Listing(data=show_reviews(session, jobs), has_more=has_more)


@router.get("/v1/reviews/{review_id}", dependencies=[Depends(require_staff)])
def retrieve(review_id: str, session: SessionDep) -> ReviewObject:
    """Show one review, decided or not."""
    return show_review(session, service.get_review(session, review_id))


@router.post("/v1/reviews/{review_id}/release")
def release(review_id: str, body: Decide, caller: ReviewerDep, session: SessionDep) -> ReviewObject:
    """Release held data, to be trained on, or a held model; where two reviewers must agree, note the first one's word."""
    job = service.decide(session, review_id, "release", body.reason, by=caller.key)
    return show_review(session, job)


@router.post("/v1/reviews/{review_id}/reject")
def reject(review_id: str, body: Decide, caller: ReviewerDep, session: SessionDep) -> ReviewObject:
    """Reject held data, or block a held model; the job fails with the reason."""
    job = service.decide(session, review_id, "reject", body.reason, by=caller.key)
    return show_review(session, job)


@router.post("/v1/reviews/{review_id}/reevaluate")
def reevaluate(
    review_id: str, body: Decide, caller: ReviewerDep, session: SessionDep
) -> ReviewObject:
    """Measure a kept model again, without training it again; the gate decides anew."""
    return show_review(session, service.reevaluate(session, review_id, body.reason, by=caller.key))


@router.post("/v1/fine_tuning/jobs/{job_id}/appeal", tags=["fine-tuning"])
def appeal(
    job_id: str, body: CreateAppeal, caller: CustomerDep, session: SessionDep
) -> AppealObject:
    """Ask a person to look at a blocked model, once. The job runs again, in stage `review`."""
    made = service.appeal(session, job_id, body.text, by=caller.key)
    return show_appeal(*service.get_appeal(session, made.job_id, project_id=caller.project.id))


@router.get("/v1/fine_tuning/jobs/{job_id}/appeal", tags=["fine-tuning"])
def retrieve_appeal(job_id: str, caller: CallerDep, session: SessionDep) -> AppealObject:
    """Show a job's appeal and how it ended."""
    return show_appeal(*service.get_appeal(session, job_id, project_id=caller.visible_project_id))


@router.get("/v1/projects/{project_id}/risk", dependencies=[Depends(require_staff)])
def risk(project_id: str, session: SessionDep) -> RiskObject:
    """Show what a project's jobs of the last 30 days add up to."""
    project = session.get(Project, project_id)
    if project is None:
        raise ProjectNotFound(f"No project {project_id[:64]!r}.", param="project_id")
    return show_risk(session, project)
