"""The queue as a list: who waits, since when and how long still, for whom, and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.measures import Measure, harmful_score
from api.registry.safety import latest_evaluations
from api.reviews import service
from api.reviews.schemas import ReviewObject
from api.reviews.wire import show_reviews
from models.base import utc_now
from models.evaluation import Evaluation
from models.job import Job
from models.policy import PolicyRules, SafetyPolicy
from models.risk import last_risks

PAGE_SIZE = 50
#: What has less time left than this is marked.
SOON = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class ReviewLine:
    """One that waits."""

    job: Job
    review: ReviewObject
    harmful_score: Measure | None
    #: The project's risk that its newest model was decided with; its own page works it out anew.
    risk: float | None
    now: datetime

    @property
    def held_at(self) -> datetime:
        """Since when it waits."""
        return self.job.held_at or self.job.created_at

    @property
    def seconds_left(self) -> float | None:
        """How long until it is decided without a person."""
        ends = self.job.review_expires_at
        return (ends - self.now).total_seconds() if ends else None

    @property
    def is_urgent(self) -> bool:
        """Whether that is soon."""
        left = self.seconds_left
        return left is not None and left < SOON.total_seconds()


@dataclass(frozen=True, slots=True)
class Queue:
    """A page of the queue, the longest wait first."""

    lines: tuple[ReviewLine, ...]
    next_after: str | None


def read_queue(session: Session, after: str | None) -> Queue:
    """Give a page of what waits."""
    jobs, has_more = service.list_reviews(session, after=after, limit=PAGE_SIZE)
    shown = {review.id: review for review in show_reviews(session, jobs, with_risk=False)}
    risks = last_risks(session, list({job.project_id for job in jobs}))
    scores = _scores(session, {review.model for review in shown.values()})
    now = utc_now()
    lines = tuple(
        ReviewLine(
            job, shown[job.id], scores.get(shown[job.id].model), risks.get(job.project_id), now
        )
        for job in jobs
        if job.id in shown
    )
    return Queue(lines, jobs[-1].id if has_more else None)


def policies_of(session: Session, evaluations: Collection[Evaluation]) -> dict[int, PolicyRules]:
    """Give the rules that decided on evaluations, by version."""
    versions = {evaluation.policy_version for evaluation in evaluations} - {None}
    found = session.scalars(select(SafetyPolicy).where(SafetyPolicy.version.in_(versions)))
    return {policy.version: policy.parsed() for policy in found}


def _scores(session: Session, version_ids: Collection[str]) -> dict[str, Measure]:
    evaluations = latest_evaluations(session, version_ids)
    rules = policies_of(session, evaluations.values())
    default = PolicyRules()
    return {
        version_id: harmful_score(evaluation, rules.get(evaluation.policy_version or 0, default))
        for version_id, evaluation in evaluations.items()
    }
