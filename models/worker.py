"""Workers: what each process that runs jobs last said of itself.

A worker claims jobs by their rows, not by this one: it is for people, who want to see what there is to run on.
A worker that fell silent is seen as gone by its last word, and forgotten after a day.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, utc_now

#: How often a worker speaks, and after how long a silence it counts as gone.
SPEAKS_EVERY = timedelta(seconds=10)
GONE_AFTER = timedelta(seconds=45)
FORGOTTEN_AFTER = timedelta(days=1)


class Worker(Base):
    """One process that runs jobs. `id` is what jobs name as their lease's owner."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    #: It said good-bye.
    stopped_at: Mapped[datetime | None]
    #: Such as `cuda: NVIDIA H100` or `cpu`.
    device: Mapped[str]
    #: Of the device: what there is, and what this process has of it.
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    memory_used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: Busy share of the device, where it can be told.
    utilisation_percent: Mapped[float | None]
    #: The base that is in memory, and the job that the worker holds.
    base_id: Mapped[str | None]
    job_id: Mapped[str | None]
    version: Mapped[str]

    @property
    def is_alive(self) -> bool:
        """Whether it spoke lately and has not said good-bye."""
        return self.stopped_at is None and utc_now() - self.seen_at < GONE_AFTER


def speak(session: Session, worker_id: str, facts: Mapping[str, Any]) -> None:
    """Write what a worker says of itself over what it said before. The caller commits."""
    row = {"stopped_at": None, **facts, "seen_at": utc_now()}
    session.execute(
        insert(Worker)
        .values(id=worker_id, **row)
        .on_conflict_do_update(index_elements=["id"], set_=row)
    )


def forget_workers(session: Session) -> None:
    """Forget the workers that have been silent for long. The caller commits."""
    session.execute(delete(Worker).where(Worker.seen_at < utc_now() - FORGOTTEN_AFTER))
