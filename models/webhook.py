"""Webhooks: who is to be told what, and the outbox of what there is to tell.

    job ends, data or model is decided on ──► WebhookEvent + one WebhookDelivery per endpoint that wants it
                               (in the same transaction: neither without the other)
    pending ──► delivered
       │  ▲
       ▼  │ redelivery
      failed     after `MAX_ATTEMPTS`, or at once where the receiver says that it is gone

An event is made by the session itself when it writes the change (`_announce`), so no code that ends a job or
decides on a model can forget it. Its id is the delivery's `webhook-id`, the same at every attempt.
`api.webhooks.delivery` sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    and_,
    false,
    inspect,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.event import listens_for
from sqlalchemy.orm import (
    InstanceState,
    Mapped,
    Session,
    UOWTransaction,
    mapped_column,
    relationship,
)
from sqlalchemy.types import String

from models.base import Base, new_id, utc_now
from models.data_risk import DataReview, Screening
from models.job import Job, JobKind, JobStatus
from models.model_version import Gate, ModelVersion
from models.project import Project


class WebhookEventType(StrEnum):
    """What can be told. The first three are OpenAI's; the others are Titer's own."""

    FINETUNE_SUCCEEDED = "fine_tuning.job.succeeded"
    FINETUNE_FAILED = "fine_tuning.job.failed"
    FINETUNE_CANCELLED = "fine_tuning.job.cancelled"
    #: Jobs that align, certify or evaluate: `fine_tuning.jobs.retrieve` does not know them.
    JOB_SUCCEEDED = "titer.job.succeeded"
    JOB_FAILED = "titer.job.failed"
    JOB_CANCELLED = "titer.job.cancelled"
    #: Of every kind.
    JOB_PAUSED = "titer.job.paused"
    DATA_HELD = "titer.data.held"
    DATA_RELEASED = "titer.data.released"
    DATA_REJECTED = "titer.data.rejected"
    MODEL_HELD = "titer.model.held"
    MODEL_RELEASED = "titer.model.released"
    MODEL_BLOCKED = "titer.model.blocked"
    #: The canary ended training before its last step.
    CANARY_ALARM = "titer.canary.alarm"


#: By the status's stored word.
_FINETUNE_TYPES: Mapping[str, WebhookEventType] = {
    JobStatus.SUCCEEDED: WebhookEventType.FINETUNE_SUCCEEDED,
    JobStatus.FAILED: WebhookEventType.FINETUNE_FAILED,
    JobStatus.CANCELLED: WebhookEventType.FINETUNE_CANCELLED,
    "paused": WebhookEventType.JOB_PAUSED,
}
_OTHER_JOB_TYPES: Mapping[str, WebhookEventType] = {
    JobStatus.SUCCEEDED: WebhookEventType.JOB_SUCCEEDED,
    JobStatus.FAILED: WebhookEventType.JOB_FAILED,
    JobStatus.CANCELLED: WebhookEventType.JOB_CANCELLED,
    "paused": WebhookEventType.JOB_PAUSED,
}
_MODEL_TYPES: Mapping[str, WebhookEventType] = {
    Gate.HELD: WebhookEventType.MODEL_HELD,
    Gate.RELEASED: WebhookEventType.MODEL_RELEASED,
    Gate.BLOCKED: WebhookEventType.MODEL_BLOCKED,
}
_DATA_TYPES: Mapping[str, WebhookEventType] = {
    DataReview.WAITING: WebhookEventType.DATA_HELD,
    DataReview.RELEASED: WebhookEventType.DATA_RELEASED,
    DataReview.REJECTED: WebhookEventType.DATA_REJECTED,
    DataReview.EXPIRED: WebhookEventType.DATA_REJECTED,
}

#: In one round; a redelivery begins another.
MAX_ATTEMPTS = 10


class DeliveryStatus(StrEnum):
    """Where a delivery is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class WebhookEndpoint(Base):
    """A receiver of a project's events, or of every project's. Secrets are sealed: a copy of the database cannot sign."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        Index("ix_webhook_endpoints_project_id_created_at_id", "project_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("whe"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    #: Made by staff, who may see every project; `project_id` is then whose it is, not whose events it is told.
    all_projects: Mapped[bool] = mapped_column(default=False, server_default=false())
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]] = mapped_column(ARRAY(String))
    sealed_secret: Mapped[str]
    secret_hint: Mapped[str]
    #: The one before it, where rotation keeps it for a while.
    old_sealed_secret: Mapped[str | None]
    old_secret_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)
    #: Deliveries given up since the last one that arrived.
    given_up_in_a_row: Mapped[int] = mapped_column(default=0)
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]

    @property
    def is_enabled(self) -> bool:
        """Whether events are sent to it."""
        return self.disabled_at is None


def new_event_id() -> str:
    """Make an event's id, with the underscore that OpenAI's have."""
    return new_id("evt").replace("-", "_", 1)


class WebhookEvent(Base):
    """Something that happened, told to whoever wanted it when it did."""

    __tablename__ = "webhook_events"
    __table_args__ = (Index("ix_webhook_events_created_at", "created_at"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=new_event_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class WebhookDelivery(Base):
    """One event for one endpoint, over all its attempts."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status in ('pending', 'delivered', 'failed')", name="status"),
        Index("ix_webhook_deliveries_endpoint_id_created_at_id", "endpoint_id", "created_at", "id"),
        Index("ix_webhook_deliveries_event_id", "event_id"),
        Index("ix_webhook_deliveries_created_at", "created_at"),
        # What is due is a small part of what was ever delivered.
        Index(
            "ix_webhook_deliveries_due",
            "next_attempt_at",
            postgresql_where=text("status = 'pending'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("whd"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str] = mapped_column(ForeignKey("webhook_events.id"))
    status: Mapped[str] = mapped_column(default=DeliveryStatus.PENDING)
    #: Over all rounds. An attempt's number is what a deliverer holds it by.
    attempts: Mapped[int] = mapped_column(default=0)
    attempts_left: Mapped[int] = mapped_column(default=MAX_ATTEMPTS)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    next_attempt_at: Mapped[datetime | None] = mapped_column(default=utc_now)
    #: While a deliverer is at it. Run out: that deliverer died, and the attempt is made again.
    leased_until: Mapped[datetime | None]
    last_attempt_at: Mapped[datetime | None]
    #: Of the last attempt: the answer's status, or why there was none.
    response_status: Mapped[int | None]
    error: Mapped[str | None]

    event: Mapped[WebhookEvent] = relationship(lazy="joined")


def publish(
    session: Session, project_id: str, type: WebhookEventType, data: Mapping[str, Any]
) -> WebhookEvent | None:
    """Put an event into the outbox, for the endpoints of the project and of all projects that want it now.

    It is told if and when this session's transaction commits. Nothing is stored when nobody wants it.

    Args:
        session: an open session.
        project_id: whose event it is.
        type: what happened.
        data: the object it happened to, by `id`, and facts beside it; whose it is, is added.
    """
    alive = select(Project.id).where(Project.archived_at.is_(None))

    # A key-share lock: an endpoint that is deleted meanwhile must not make the job's own write fail.
    wanting = session.scalars(
        select(WebhookEndpoint.id)
        .where(
            or_(
                WebhookEndpoint.project_id == project_id,
                and_(WebhookEndpoint.all_projects, WebhookEndpoint.project_id.in_(alive)),
            ),
            WebhookEndpoint.disabled_at.is_(None),
            WebhookEndpoint.event_types.contains([type.value]),
        )
        .order_by(WebhookEndpoint.id)
        .with_for_update(read=True, key_share=True)
    ).all()
    if not wanting:
        return None
    happened = WebhookEvent(project_id=project_id, type=type, data={**data, "project": project_id})
    session.add_all(WebhookDelivery(endpoint_id=id, event=happened) for id in wanting)
    return happened


@listens_for(Session, "before_flush")
def _announce(session: Session, _context: UOWTransaction, _instances: object) -> None:
    """Publish what the flush is about to write, if it is something to be told."""
    dirty, new = list(session.dirty), list(session.new)
    for changed in dirty:
        if isinstance(changed, Job) and _is_changed(changed, "status"):
            _announce_job(session, changed)
        elif isinstance(changed, Screening) and _is_changed(changed, "review"):
            _announce_data(session, changed)
    # A job never begins where it ends, but a model may be decided on as it is made.
    for changed in [*dirty, *new]:
        if isinstance(changed, ModelVersion) and _is_changed(changed, "gate"):
            _announce_model(session, changed)


def _is_changed(row: Job | Screening | ModelVersion, name: str) -> bool:
    state: InstanceState[Job | Screening | ModelVersion] = inspect(row)
    return state.attrs[name].history.has_changes()


def _announce_job(session: Session, job: Job) -> None:
    types = _FINETUNE_TYPES if job.kind == JobKind.FINETUNE else _OTHER_JOB_TYPES
    type = types.get(job.status)
    if type is not None:
        error = {"code": job.error_code, "message": job.error_message} if job.error_code else None
        facts = {"id": job.id, "kind": job.kind, "model": job.result_model_id, "error": error}
        publish(session, job.project_id, type, facts)


def _announce_data(session: Session, screening: Screening) -> None:
    type, risk = _DATA_TYPES.get(screening.review or ""), screening.parsed()
    if type is not None and risk is not None:
        job = session.get_one(Job, screening.job_id)
        reasons = [risk.found, risk.limit]
        if screening.review_reason:
            reasons.append(screening.review_reason)
        facts = {"id": job.id, "file": job.training_file_id, "reasons": reasons}
        publish(session, job.project_id, type, facts)


def _announce_model(session: Session, version: ModelVersion) -> None:
    type = _MODEL_TYPES.get(version.gate)
    # Aligned models are nobody's, but the job that made one is its project's.
    job = session.get(Job, version.job_id) if version.job_id is not None else None
    project_id = version.project_id or (job.project_id if job is not None else None)
    if type is not None and project_id is not None:
        # Before the first flush a column has no default yet.
        reasons = list(version.gate_reasons or ())
        facts = {"id": version.id, "job": version.job_id, "reasons": reasons}
        publish(session, project_id, type, facts)
