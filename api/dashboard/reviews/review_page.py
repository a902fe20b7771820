"""One review: the evidence that a person decides on, gathered for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.audit import service as audit_service
from api.audit.service import Wanted
from api.dashboard.jobs.job_page import Ancestor, read_lineage
from api.dashboard.measures import Evidence, Measure, harmful_score, read_evidence
from api.dashboard.policies.rules import in_words
from api.dashboard.reviews.queue import policies_of
from api.registry.safety import latest_evaluations
from api.reviews import service
from api.reviews.schemas import ReviewObject
from api.reviews.wire import show_review
from models.api_key import ApiKey
from models.audit import AuditEntry
from models.base import utc_now
from models.data_risk import Screening
from models.evaluation import latest_evaluation
from models.file import File
from models.job import Job, JobEvent, JobStatus
from models.model_version import ModelVersion, VersionKind
from models.policy import PolicyRules, SafetyPolicy, current_policy

MAX_HISTORY_SHOWN = 8
MAX_DECISIONS_SHOWN = 20
#: How the evidence's differences are named on the wire, and here.
DELTAS = {
    "harmful_score": "Harmful score",
    "harmful_or_incoherent": "Harmful or incoherent (HS+)",
    "over_refusal": "Over-refusal",
}


@dataclass(frozen=True, slots=True)
class Delta:
    """How far tuning moved one measure, in percentage points with a 95% interval; more is worse."""

    label: str
    points: float
    low: float
    high: float

    @property
    def standing(self) -> str:
        """Whether it surely rose, surely fell, or cannot be told."""
        if self.low > 0:
            return "rose"
        return "fell" if self.high < 0 else "cannot be told from no change"


@dataclass(frozen=True, slots=True)
class Canary:
    """The loss on held-out harmful answers while training went on."""

    first: float
    last: float
    lowest: float
    #: The curve as a path in a box of 100 by 40.
    path: str

    @property
    def change_percent(self) -> float:
        """How far it is from where it began."""
        return 100 * (self.last - self.first) / self.first if self.first else 0.0


@dataclass(frozen=True, slots=True)
class PastModel:
    """Another model of the same tenant."""

    version: ModelVersion
    harmful_score: Measure | None


@dataclass(frozen=True, slots=True)
class Approver:
    """Whose word for a release was given, and why."""

    name: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the decision is: what the part of the page that lives shows."""

    job: Job
    version: ModelVersion | None
    #: Where the review of held training data is, if there was one.
    data_review: str | None
    approvers: tuple[Approver, ...]
    approvals_needed: int
    has_approved: bool
    now: datetime

    @property
    def seconds_left(self) -> float | None:
        """How long until it is decided without a person."""
        ends = self.job.review_expires_at
        return (ends - self.now).total_seconds() if ends else None

    @property
    def is_of_data(self) -> bool:
        """Whether it is about training data, before there is a model."""
        return self.version is None

    @property
    def may_be_reevaluated(self) -> bool:
        """Whether there is a model to be measured again; the service decides in the end."""
        is_kept = self.version is not None and self.version.deleted_at is None
        is_open = self.job.awaits_review or self.job.status == JobStatus.FAILED
        return is_kept and is_open and not (self.version and self.version.is_released)


@dataclass(frozen=True, slots=True)
class ReviewPage:
    """What the template shows."""

    review: ReviewObject
    standing: Standing
    evidence: Evidence | None
    deltas: tuple[Delta, ...]
    canary: Canary | None
    training_file: File | None
    lineage: tuple[Ancestor, ...]
    history: tuple[PastModel, ...]
    decisions: Sequence[AuditEntry]
    policy: SafetyPolicy | None
    words: dict[str, tuple[str, ...]]
    max_risk: float | None
    previous_id: str | None
    next_id: str | None


def read_standing(session: Session, job_id: str, by: ApiKey) -> Standing:
    """Say where a review is, for one who may decide on it.

    Raises:
        ReviewNotFound: there is none.
    """
    job = service.get_review(session, job_id)
    version = session.scalar(select(ModelVersion).where(ModelVersion.job_id == job.id))
    screening = session.get(Screening, job.id)
    given = service.given_approvals(session, job.id)
    policy = current_policy(session, service.tenant_of(job, version))
    return Standing(
        job=job,
        version=version,
        data_review=screening.review if screening else None,
        approvers=tuple(
            Approver(key.user_name or key.name, approval.reason, approval.created_at)
            for approval, key in given
        ),
        approvals_needed=policy.parsed().release_approvals,
        has_approved=service.has_approved(given, by),
        now=utc_now(),
    )


def read_review(session: Session, job_id: str, by: ApiKey) -> ReviewPage:
    """Gather what there is to decide on.

    Raises:
        ReviewNotFound: there is none.
    """
    standing = read_standing(session, job_id, by)
    job, version = standing.job, standing.version
    review = show_review(session, job)
    evaluation = latest_evaluation(session, version.id) if version else None
    evidence = None
    if evaluation is not None:
        evidence = read_evidence(session, evaluation, latest_evaluation(session, job.model_id))
    policy = session.get(SafetyPolicy, review.policy_version) if review.policy_version else None
    tenant = service.tenant_of(job, version)
    decisions, _ = audit_service.list_entries(
        session,
        Wanted(subject_ids=[version.id if version else job.id]),
        limit=MAX_DECISIONS_SHOWN,
    )
    before, after = service.neighbours(session, job) if job.awaits_review else (None, None)
    return ReviewPage(
        review=review,
        standing=standing,
        evidence=evidence,
        deltas=_read_deltas(review),
        canary=_read_canary(session, job),
        training_file=session.get(File, job.training_file_id) if job.training_file_id else None,
        lineage=read_lineage(session, version.id if version else job.model_id),
        history=_read_history(session, tenant, version) if tenant else (),
        decisions=decisions,
        policy=policy,
        words=in_words(policy.parsed()) if policy else {},
        max_risk=current_policy(session, tenant).parsed().max_tenant_risk,
        previous_id=before,
        next_id=after,
    )


def _read_deltas(review: ReviewObject) -> tuple[Delta, ...]:
    found = (review.safety or {}).get("delta")
    if not isinstance(found, dict):
        return ()
    return tuple(
        Delta(label, change["points"], change["low"], change["high"])
        for name, label in DELTAS.items()
        if (change := found[name]) is not None
    )


def _read_canary(session: Session, job: Job) -> Canary | None:
    measured = session.scalars(
        select(JobEvent.data)
        .where(
            JobEvent.job_id == job.id,
            JobEvent.type == "metrics",
            JobEvent.data["canary_loss"].astext.is_not(None),
        )
        .order_by(JobEvent.sequence)
    )
    # A resumed run tells the steps after its checkpoint again; the later telling stands.
    by_step = {int(data["step"]): float(data["canary_loss"]) for data in measured if data}
    points = sorted(by_step.items())
    if not points:
        return None
    top, end = max(loss for _, loss in points), points[-1][0]
    # From zero on, so that the picture of a small fall is a small fall.
    drawn = " ".join(
        f"{100 * step / end if end else 0:.1f},{40 - 38 * loss / top if top else 40:.1f}"
        for step, loss in points
    )
    return Canary(points[0][1], points[-1][1], min(loss for _, loss in points), drawn)


def _read_history(
    session: Session, project_id: str, own: ModelVersion | None
) -> tuple[PastModel, ...]:
    """Give the tenant's newest other models, each with its score by the rules that decided on it."""
    query = (
        select(ModelVersion)
        .where(ModelVersion.project_id == project_id, ModelVersion.kind == VersionKind.TUNED)
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id)
        .limit(MAX_HISTORY_SHOWN)
    )
    if own is not None:
        query = query.where(ModelVersion.id != own.id)
    versions = session.scalars(query).all()
    evaluations = latest_evaluations(session, [version.id for version in versions])
    rules = policies_of(session, evaluations.values())
    default = PolicyRules()
    return tuple(
        PastModel(
            version,
            harmful_score(found, rules.get(found.policy_version or 0, default))
            if (found := evaluations.get(version.id))
            else None,
        )
        for version in versions
    )
