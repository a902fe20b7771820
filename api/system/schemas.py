"""The installation as staff see it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from api.schemas import Schema
from api.system.parts import Part
from api.system.service import System
from api.system.shown_settings import ShownSetting
from models.base import unix
from models.worker import Worker


class PartObject(Schema):
    """One part of the service."""

    name: str
    state: Literal["ok", "warn", "down"]
    detail: str = Field(description="A sentence for a person.")
    version: str | None
    milliseconds: float | None = Field(description="How long it took to answer; null: it did not.")

    @classmethod
    def of(cls, part: Part) -> Self:
        """Show a part."""
        return cls(
            name=part.name,
            state=part.state.value,
            detail=part.detail,
            version=part.version,
            milliseconds=part.milliseconds,
        )


class WorkerObject(Schema):
    """A worker, as it last said of itself."""

    object: Literal["worker"] = "worker"
    id: str
    host: str
    state: Literal["alive", "silent", "stopped"]
    started_at: int
    seen_at: int
    device: str
    memory_bytes: int | None = Field(description="Of the device.")
    memory_used_bytes: int | None
    utilisation_percent: float | None
    base: str | None = Field(description="The base in its memory.")
    job: str | None = Field(description="The job that it holds.")
    version: str

    @classmethod
    def of(cls, worker: Worker) -> Self:
        """Show a stored worker."""
        if worker.stopped_at is not None:
            state: Literal["alive", "silent", "stopped"] = "stopped"
        else:
            state = "alive" if worker.is_alive else "silent"
        return cls(
            id=worker.id,
            host=worker.host,
            state=state,
            started_at=unix(worker.started_at),
            seen_at=unix(worker.seen_at),
            device=worker.device,
            memory_bytes=worker.memory_bytes,
            memory_used_bytes=worker.memory_used_bytes,
            utilisation_percent=worker.utilisation_percent,
            base=worker.base_id,
            job=worker.job_id,
            version=worker.version,
        )


class MigrationsObject(Schema):
    """The database's revision against the code's."""

    current: str | None
    head: str
    is_current: bool


class BacklogObject(Schema):
    """What is still to be told to webhooks' receivers."""

    is_on: bool = Field(description="Whether the service has a key to seal secrets with.")
    pending: int = Field(description="Deliveries under way; counting stops at 10,000.")
    oldest_due_at: int | None
    endpoints: int
    failing: int = Field(description="Endpoints whose last deliveries were given up.")
    disabled: int = Field(description="Endpoints that are sent nothing more.")


class SettingObject(Schema):
    """One setting. Of a secret only whether it is set."""

    group: str
    variable: str = Field(description="The environment variable.")
    value: str
    is_default: bool
    is_secret: bool

    @classmethod
    def of(cls, setting: ShownSetting) -> Self:
        """Show a setting."""
        return cls(
            group=setting.group,
            variable=setting.variable,
            value=setting.value,
            is_default=setting.is_default,
            is_secret=setting.is_secret,
        )


class SystemObject(Schema):
    """The whole installation."""

    object: Literal["system"] = "system"
    is_well: bool
    versions: dict[str, str]
    migrations: MigrationsObject
    parts: list[PartObject]
    workers: list[WorkerObject]
    signing_key: str | None = Field(
        description="Id of the key that signs safety reports; null: none."
    )
    webhooks: BacklogObject
    settings: list[SettingObject] | None = Field(description="To operators alone; null to others.")

    @classmethod
    def of(cls, system: System, settings: list[ShownSetting] | None) -> Self:
        """Show what was gathered."""
        backlog, revision = system.webhooks, system.migrations
        return cls(
            is_well=system.is_well,
            versions=system.versions,
            migrations=MigrationsObject(
                current=revision.current, head=revision.head, is_current=revision.is_current
            ),
            parts=[PartObject.of(part) for part in system.parts],
            workers=[WorkerObject.of(worker) for worker in system.workers],
            signing_key=system.signing_key_id,
            webhooks=BacklogObject(
                is_on=backlog.is_on,
                pending=backlog.pending,
                oldest_due_at=unix(backlog.oldest_due_at) if backlog.oldest_due_at else None,
                endpoints=backlog.endpoints,
                failing=backlog.failing,
                disabled=backlog.disabled,
            ),
            settings=None if settings is None else [SettingObject.of(s) for s in settings],
        )
