"""API keys and projects as operators see them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from api.schemas import Schema
from models.api_key import ApiKey, Scope
from models.base import unix

Name = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]


class CreateKey(Schema):
    """A new key. A project that does not exist yet is made."""

    name: Name
    project: Name | None = Field(None, description="Name or id; by default the caller's own.")
    scopes: set[Scope] = Field(default_factory=lambda: {Scope.CUSTOMER}, min_length=1)


class ProjectObject(Schema):
    """A tenant."""

    id: str
    name: str


class KeyObject(Schema):
    """A key, without the secret: of that only the hash is kept."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    project: ProjectObject
    scopes: list[str]
    hint: str = Field(description="The key's last four characters.")
    created_at: int
    revoked_at: int | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """Show a stored key."""
        return cls(
            id=key.id,
            name=key.name,
            project=ProjectObject(id=key.project.id, name=key.project.name),
            scopes=list(key.scopes),
            hint=key.hint,
            created_at=unix(key.created_at),
            revoked_at=unix(key.revoked_at) if key.revoked_at else None,
        )


class CreatedKey(KeyObject):
    """A key on the one occasion when its secret is shown."""

    key: str
