"""API keys and their projects as operators see them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from api.schemas import Schema
from models.api_key import ApiKey
from models.base import unix
from models.scope import Scope

Name = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]
Lifetime = Annotated[int, Field(ge=60, le=10 * 366 * 24 * 3600, description="Seconds from now.")]


class CreateKey(Schema):
    """A new key. A project that does not exist yet is made."""

    name: Name
    project: Name | None = Field(None, description="Name or id; by default the caller's own.")
    scopes: set[Scope] = Field(default_factory=lambda: {Scope.CUSTOMER}, min_length=1)
    user: Name | None = Field(None, description="Who holds it; by default a program.")
    expires_in_seconds: Lifetime | None = Field(None, description="By default it never expires.")


class RotateKey(Schema):
    """How long the old key goes on working beside the new one."""

    grace_seconds: Annotated[int, Field(ge=0, le=30 * 24 * 3600)] = 24 * 3600


class ProjectObject(Schema):
    """A tenant."""

    id: str
    name: str


class KeyObject(Schema):
    """A key, without the secret: of that only the hash is kept."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    user: str | None
    project: ProjectObject
    scopes: list[str]
    hint: str = Field(description="The key's last four characters.")
    created_at: int
    expires_at: int | None
    last_used_at: int | None = Field(description="To the minute.")
    revoked_at: int | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """Show a stored key."""
        return cls(
            id=key.id,
            name=key.name,
            user=key.user_name,
            project=ProjectObject(id=key.project.id, name=key.project.name),
            scopes=list(key.scopes),
            hint=key.hint,
            created_at=unix(key.created_at),
            expires_at=unix(key.expires_at) if key.expires_at else None,
            last_used_at=unix(key.last_used_at) if key.last_used_at else None,
            revoked_at=unix(key.revoked_at) if key.revoked_at else None,
        )


class CreatedKey(KeyObject):
    """A key on the one occasion when its secret is shown."""

    key: str

    @classmethod
    def made(cls, key: ApiKey, token: str) -> Self:
        """Show a new key with its secret."""
        return cls(**KeyObject.of(key).model_dump(), key=token)
