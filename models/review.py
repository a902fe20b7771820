"""What people say about held data and models beside the decision: a first reviewer's approval, a customer's appeal.

A review is known by its job's id, for a job has one training file and makes one model. The queue is the jobs
that await one.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index, delete, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.api_key import ApiKey
from models.base import Base, utc_now

MAX_REASON = 1_000
MAX_APPEAL = 4_000


class Outcome(StrEnum):
    """How an appeal ended."""

    RELEASED = "released"
    REJECTED = "rejected"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class ReviewApproval(Base):
    """One reviewer's word for a release that needs another's too."""

    __tablename__ = "review_approvals"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    reason: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Appeal(Base):
    """A customer's objection to a blocked model: once for a job."""

    __tablename__ = "appeals"
    __table_args__ = (
        CheckConstraint(
            "outcome in ('released', 'rejected', 'expired', 'withdrawn')", name="outcome"
        ),
        Index("ix_appeals_open", "created_at", postgresql_where=text("outcome is null")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    text: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    outcome: Mapped[str | None]
    closed_at: Mapped[datetime | None]


def close_appeal(session: Session, job_id: str, outcome: Outcome) -> None:
    """Write down how a job's appeal ended, if there is an open one."""
    appeal = session.get(Appeal, job_id)
    if appeal is not None and appeal.outcome is None:
        appeal.outcome, appeal.closed_at = outcome, utc_now()


def forget_approvals(session: Session, job_id: str) -> None:
    """Start again: the evidence that was approved is no longer what is decided on."""
    session.execute(delete(ReviewApproval).where(ReviewApproval.job_id == job_id))


def person(key: ApiKey) -> str:
    """Name who stands behind a key, to tell two people apart; a program's key stands for itself."""
    return key.user_name or key.id
