"""Checkpoints as customers see them: where a job stood at the end of an epoch, and what was measured there.

Not the checkpoints from which an interrupted run goes on (`resume_prefix`): those are the worker's own.

Each has the name of a model. The last epoch's is the job's model itself; the weights of the two before it are
model versions of their own, which the gate must release as any other. Of older ones only the numbers stay.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, new_id, utc_now

#: Where runs keep what they can go on from, each job by its id.
RESUME = "checkpoints"
# Epochs before the last whose weights are kept, as at other providers.
KEPT_BEFORE_LAST = 2


class JobCheckpoint(Base):
    """The end of one epoch of a fine-tuning job."""

    __tablename__ = "job_checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    id: Mapped[str] = mapped_column(
        primary_key=True, default=lambda: new_id("ftckpt").replace("-", "_")
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    #: Optimiser steps done, which is how checkpoints are told apart.
    step: Mapped[int]
    #: The name of its model version; there may be none of that name (any more).
    version_name: Mapped[str]
    #: What the training loop measured at this step, by name.
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


def checkpoint_name(model_name: str, step: int) -> str:
    """Name the model version of a checkpoint, as OpenAI's clients know it."""
    return f"{model_name}:ckpt-step-{step}"


def resume_prefix(job_id: str) -> str:
    """Name the place in the storage from which an interrupted or paused run goes on."""
    return f"{RESUME}/{job_id}"
