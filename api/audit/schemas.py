"""Audit entries as staff, and the stock client, see them."""

from __future__ import annotations

from typing import Literal, Self

from api.schemas import JsonObject, Schema
from models.audit import AuditEntry
from models.audit_chain import ChainReport
from models.base import unix


class AuditActor(Schema):
    """Who acted. Without a key it was the service itself, or whoever holds the database."""

    key_id: str | None
    name: str
    project_id: str | None


class AuditSubject(Schema):
    """What was acted on."""

    kind: str
    id: str


class AuditObject(Schema):
    """An entry. `sha256` is over the other fields, `object` excepted."""

    object: Literal["audit_entry"] = "audit_entry"
    id: str
    position: int
    created_at: int
    action: str
    actor: AuditActor
    subject: AuditSubject
    project_id: str | None
    reason: str | None
    details: JsonObject
    previous_sha256: str
    sha256: str

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        """Show a stored entry."""
        return cls.model_validate({**entry.content(), "sha256": entry.sha256})


class AuditHead(Schema):
    """The end of the chain: keep it elsewhere, and later ask whether it is still in the chain."""

    position: int
    sha256: str


class AuditVerification(Schema):
    """What checking the chain found."""

    object: Literal["audit_verification"] = "audit_verification"
    whole: bool
    entries: int
    head: AuditHead
    fault: str | None

    @classmethod
    def of(cls, report: ChainReport) -> Self:
        """Show a report."""
        return cls(
            whole=report.is_whole,
            entries=report.entries,
            head=AuditHead(position=report.head.position, sha256=report.head.sha256),
            fault=report.fault,
        )


class ServiceAccount(Schema):
    """A key's holder, in the place where OpenAI names one."""

    id: str


class LogApiKey(Schema):
    """The key that was used."""

    id: str
    type: Literal["service_account"] = "service_account"
    service_account: ServiceAccount


class LogActor(Schema):
    """Who acted, as OpenAI's audit log names it."""

    type: Literal["api_key"] = "api_key"
    api_key: LogApiKey


class LogProject(Schema):
    """The project that the action was scoped to."""

    id: str
    name: str


class OrganizationLog(Schema):
    """An entry in the shape that the stock client's `admin.organization.audit_logs` reads."""

    object: Literal["organization.audit_log"] = "organization.audit_log"
    id: str
    effective_at: int
    type: str
    actor: LogActor | None
    project: LogProject | None
    titer: AuditObject

    @classmethod
    def of(cls, entry: AuditEntry, type: str, project: LogProject | None) -> Self:
        """Show a stored entry under OpenAI's word for its action."""
        key_id = entry.actor_key_id
        return cls(
            id=entry.id,
            effective_at=unix(entry.created_at),
            type=type,
            actor=LogActor(api_key=LogApiKey(id=key_id, service_account=ServiceAccount(id=key_id)))
            if key_id
            else None,
            project=project,
            titer=AuditObject.of(entry),
        )
