"""What each project uses of its quotas, counted every minute by the sweeper (`api.organization.use`).

A limit is checked against the rows themselves (`api.organization.quotas`). This is for pages about all projects at
once, which would have to add up every file and every job of the month.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class ProjectUse(Base):
    """The last count of one project. The columns are named as the quotas are."""

    __tablename__ = "project_use"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    counted_at: Mapped[datetime]
    jobs_running: Mapped[int]
    jobs_queued: Mapped[int]
    bytes_stored: Mapped[int] = mapped_column(BigInteger)
    training_tokens_month: Mapped[int] = mapped_column(BigInteger)
    gpu_seconds_month: Mapped[int] = mapped_column(BigInteger)
