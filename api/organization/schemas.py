"""Projects, keys and usage, in the shapes of OpenAI's administration objects; ours come after."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from api.keys.schemas import Lifetime, Name
from api.schemas import JsonObject, Listing, Schema
from models.api_key import TOKEN_PREFIX, ApiKey, Project
from models.base import unix
from models.priority import Priority

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Amount = Annotated[int, Field(ge=0, le=2**53)]


class QuotaLimits(Schema):
    """Limits of one project. 0: no limit. null: the service's default."""

    jobs_running: Count | None = Field(None, description="Jobs that workers have at once.")
    jobs_queued: Count | None = Field(None, description="Jobs that wait for a worker.")
    bytes_stored: Amount | None = Field(None, description="Bytes of files.")
    training_tokens_month: Amount | None = Field(None, description="Tokens trained in a month.")
    gpu_seconds_month: Amount | None = Field(None, description="Seconds on workers in a month.")


class CreateProject(Schema):
    """A new project."""

    name: Name
    organization: Name | None = Field(
        None, description="Name or id; one that does not exist is made. By default its own."
    )
    priority: Priority = Priority.NORMAL
    quotas: QuotaLimits = QuotaLimits()


class UpdateProject(Schema):
    """What to change of a project; what is left out stays."""

    name: Name | None = None
    priority: Priority | None = None
    quotas: QuotaLimits | None = None


class ProjectObject(Schema):
    """A project."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]

    organization_id: str
    organization_name: str
    priority: str = Field(description="Whose jobs are taken first: high, normal or low.")
    quotas: QuotaLimits

    @classmethod
    def of(cls, project: Project) -> Self:
        """Show a stored project, its organization loaded."""
        return cls(
            id=project.id,
            name=project.name,
            created_at=unix(project.created_at),
            archived_at=unix(project.archived_at) if project.archived_at else None,
            status="archived" if project.archived_at else "active",
            organization_id=project.organization_id,
            organization_name=project.organization.name,
            priority=project.priority,
            quotas=QuotaLimits.model_validate(project.own_quotas),
        )


class ProjectList(Listing[ProjectObject]):
    """A page of projects; the stock client goes on from `last_id`."""

    last_id: str | None


class QuotaObject(Schema):
    """One limit, and how much of it is used."""

    object: Literal["organization.quota"] = "organization.quota"
    name: str
    limit: int = Field(description="0: no limit.")
    used: int
    is_default: bool = Field(description="Whether the service's default holds.")


class QuotaList(Listing[QuotaObject]):
    """Every limit of one project."""

    project_id: str


class _OrganizationKey(Schema):
    """What OpenAI's two objects for keys have in common."""

    id: str
    name: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    redacted_value: str
    owner: JsonObject
    scopes: list[str]

    @classmethod
    def shown(cls, key: ApiKey, **own: object) -> Self:
        """Show a stored key with what is this object's own."""
        return cls.model_validate(
            {
                "id": key.id,
                "name": key.name,
                "created_at": unix(key.created_at),
                "expires_at": unix(key.expires_at) if key.expires_at else None,
                "last_used_at": unix(key.last_used_at) if key.last_used_at else None,
                "redacted_value": redacted(key),
                "scopes": list(key.scopes),
                **own,
            }
        )


class ProjectKeyObject(_OrganizationKey):
    """A key of a project."""

    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    owner_project_access: Literal["active", "inactive"]

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """Show a stored key."""
        access = "active" if key.why_dead is None else "inactive"
        return cls.shown(key, owner=_owner(key), owner_project_access=access)


class ProjectKeyList(Listing[ProjectKeyObject]):
    """A page of a project's keys; the stock client goes on from `last_id`."""

    last_id: str | None


class CreateAdminKey(Schema):
    """A new key that may run the service."""

    name: Name
    expires_in_seconds: Lifetime | None = None


class AdminKeyObject(_OrganizationKey):
    """A key that may run the service: one with the scope operator."""

    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """Show a stored key."""
        holder = key.user_name or key.name
        owner = {
            "type": "user",
            "object": "organization.user",
            "id": holder,
            "name": holder,
            "created_at": unix(key.created_at),
            "role": "owner",
        }
        return cls.shown(key, owner=owner)


class CreatedAdminKey(AdminKeyObject):
    """A key on the one occasion when its secret is shown."""

    value: str


class UsageResult(Schema):
    """What one project used in one bucket."""

    object: Literal["organization.usage.fine_tuning.result"] = (
        "organization.usage.fine_tuning.result"
    )
    project_id: str
    jobs: int = Field(description="Jobs of every kind that ended, however they ended.")
    trained_tokens: int
    gpu_seconds: float = Field(description="For which workers had those jobs.")
    bytes: int = Field(description="Of files, at the end of the bucket.")


class UsageBucket(Schema):
    """One day or month, UTC."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[UsageResult]


class UsagePage(Schema):
    """A page of buckets, oldest first."""

    object: Literal["page"] = "page"
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None


def redacted(key: ApiKey) -> str:
    """Show what may be shown of a key's secret."""
    return f"{TOKEN_PREFIX}...{key.hint}"


def _owner(key: ApiKey) -> JsonObject:
    if key.user_name is None:
        account = {"id": key.id, "name": key.name, "created_at": unix(key.created_at)}
        return {"type": "service_account", "service_account": {**account, "role": "member"}}
    user = {
        "id": key.user_name,
        "name": key.user_name,
        "email": key.user_name if "@" in key.user_name else "",
        "created_at": unix(key.created_at),
        "role": "member",
    }
    return {"type": "user", "user": user}
