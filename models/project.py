"""Organizations and their projects: a project is the tenant that owns files, jobs and tuned models.

A limit of a project that is not set is the service's default (`models.settings`); 0 is no limit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, new_id, utc_now
from models.priority import Priority


@dataclass(frozen=True, slots=True)
class Quotas:
    """The limits of one project. 0: no limit."""

    #: Jobs that workers have at the same time; more of them wait.
    jobs_running: int = 0
    #: Jobs that wait for a worker; a further one is refused.
    jobs_queued: int = 0
    #: Bytes of the files that were not deleted.
    bytes_stored: int = 0
    #: Tokens trained in a calendar month, UTC.
    training_tokens_month: int = 0
    #: Seconds for which workers held the project's jobs in a calendar month, UTC.
    gpu_seconds_month: int = 0


class Organization(Base):
    """What projects belong to. Its id is what OpenAI's objects call `organization_id`."""

    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("org"))
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Project(Base):
    """A tenant: the owner of files, jobs and tuned models.

    One that is made without an organization gets an organization of its own, of the same name.
    """

    __tablename__ = "projects"
    __table_args__ = (
        CheckConstraint("priority in ('high', 'normal', 'low')", name="priority"),
        Index("ix_projects_created_at_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("proj"))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    #: From then on its keys open nothing; what it owns stays.
    archived_at: Mapped[datetime | None]
    priority: Mapped[str] = mapped_column(default=Priority.NORMAL)

    quota_jobs_running: Mapped[int | None]
    quota_jobs_queued: Mapped[int | None]
    quota_bytes_stored: Mapped[int | None] = mapped_column(BigInteger)
    quota_training_tokens_month: Mapped[int | None] = mapped_column(BigInteger)
    quota_gpu_seconds_month: Mapped[int | None] = mapped_column(BigInteger)

    organization: Mapped[Organization] = relationship(lazy="raise")

    def __init__(self, **facts: Any) -> None:
        facts.setdefault("id", new_id("proj"))
        if not {"organization", "organization_id"} & facts.keys():
            facts["organization"] = Organization(
                id="org-" + facts["id"].removeprefix("proj-"), name=facts["name"]
            )
        if "organization" in facts:
            # Known at once, not only after the flush: names of models are made of it.
            facts.setdefault("organization_id", facts["organization"].id)
        super().__init__(**facts)

    @property
    def own_quotas(self) -> dict[str, int | None]:
        """The limits set for this project; None where the service's default holds."""
        return {field.name: getattr(self, f"quota_{field.name}") for field in fields(Quotas)}

    def quotas(self, defaults: Quotas) -> Quotas:
        """Give the limits that hold for this project."""
        own = {name: limit for name, limit in self.own_quotas.items() if limit is not None}
        return replace(defaults, **own)
