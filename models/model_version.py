"""Model versions: a base, an aligned base, or a tuned adapter, with lineage and gate.

A version's `id` is the name that clients send as `model`. Tuned versions, and those that were aligned by an
adapter, are PEFT adapters over their root; a base's weights stay where its owner keeps them. A version that
was aligned in full parameters has weights of its own and is the root of what is made from it.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, or_, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, utc_now
from models.errors import Forbidden, NotFound

#: Selects the versions whose training the canary ended. Written out, as the index on them has it: with the
#: path as a parameter PostgreSQL would not know that the index is meant.
CANARY_FELL = text("(model_versions.recipe #>> '{protection,stopped_at_step}') is not null")


#: Written out for the same reason: the few versions that the provider made.
NOT_TUNED = text("model_versions.kind <> 'tuned'")


class ModelNotFound(NotFound):
    """No such model."""

    code = "model_not_found"


class ModelBlocked(Forbidden):
    """The model has not passed the safety gate."""

    code = "model_blocked"


class VersionKind(StrEnum):
    """What a version is."""

    #: Weights as they came from a hub or a folder; never served to customers.
    BASE = "base"
    #: A base hardened in the alignment stage; what customers tune.
    ALIGNED = "aligned"
    #: A customer's adapter, continued from an aligned base or an earlier tuned version.
    TUNED = "tuned"


class Gate(StrEnum):
    """Whether a version may be used."""

    #: Not decided: no evaluation, or the evaluator broke.
    PENDING = "pending"
    #: May be used.
    RELEASED = "released"
    #: A person must decide.
    HELD = "held"
    #: May not be used.
    BLOCKED = "blocked"


class ModelVersion(Base):
    """One set of weights. `project_id` is empty for the provider's versions, which all may tune."""

    __tablename__ = "model_versions"
    __table_args__ = (
        CheckConstraint("kind in ('base', 'aligned', 'tuned')", name="kind"),
        CheckConstraint("gate in ('pending', 'released', 'held', 'blocked')", name="gate"),
        CheckConstraint("(kind = 'tuned') = (project_id is not null)", name="owner"),
        Index("ix_model_versions_created_at", "created_at"),
        Index("ix_model_versions_gate_created_at", "gate", "created_at"),
        # A million tuned versions must slow down neither the page of models nor a customer's own list.
        Index("ix_model_versions_parent_id_created_at_id", "parent_id", "created_at", "id"),
        Index("ix_model_versions_project_id_created_at_id", "project_id", "created_at", "id"),
        # Which of the versions that may be tuned a customer uses, no statistics tell: they may all be of one.
        Index(
            "ix_model_versions_project_id_parent_id_created_at_id",
            "project_id",
            "parent_id",
            "created_at",
            "id",
        ),
        Index("ix_model_versions_not_tuned", "created_at", "id", postgresql_where=NOT_TUNED),
        Index("ix_model_versions_canary_fell", "created_at", postgresql_where=CANARY_FELL),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    gate: Mapped[str] = mapped_column(default=Gate.PENDING)
    gate_reasons: Mapped[list[Any]] = mapped_column(default=list)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("model_versions.id"))
    #: The weights below: a base's own id, or that of an alignment in full parameters.
    root_id: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", use_alter=True), unique=True)
    #: For a base: {"folder": ...} or {"repo": ..., "revision": commit}. Otherwise {"prefix": storage key},
    #: with {"form": "weights"} beside it for a whole model's files rather than an adapter's.
    source: Mapped[dict[str, Any]]
    #: Storage prefix of the safety set that alignment and evaluation of this lineage use.
    safety_prefix: Mapped[str]
    method: Mapped[str | None]
    recipe: Mapped[dict[str, Any]] = mapped_column(default=dict)
    data_hashes: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    deleted_at: Mapped[datetime | None]

    @property
    def is_released(self) -> bool:
        """Whether the gate lets it be used."""
        return self.gate == Gate.RELEASED

    @property
    def stopped_at_step(self) -> int | None:
        """The last step that was made, where the canary ended training before there were as many as planned."""
        protection = self.recipe.get("protection") or {}
        return protection.get("stopped_at_step")

    @property
    def is_adapter(self) -> bool:
        """Whether its weights are an adapter over its root, not a model of their own."""
        return "prefix" in self.source and self.source.get("form") != "weights"


def get_version(session: Session, version_id: str, *, project_id: str | None) -> ModelVersion:
    """Give a version that the caller may know of.

    Args:
        session: an open session.
        version_id: the model's public name.
        project_id: the caller's project, or None for an operator, who sees every project's.

    Raises:
        ModelNotFound: it is absent, deleted, or another project's.
    """
    query = select(ModelVersion).where(
        ModelVersion.id == version_id, ModelVersion.deleted_at.is_(None)
    )
    if project_id is not None:
        query = query.where(
            or_(ModelVersion.project_id.is_(None), ModelVersion.project_id == project_id)
        )
    version = session.scalar(query)
    if version is None:
        raise ModelNotFound(f"The model {version_id[:128]!r} does not exist.", param="model")
    return version
