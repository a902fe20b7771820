"""Projects and their API keys. A key is shown once; only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship
from sqlalchemy.types import String

from models.base import Base, new_id, utc_now
from models.errors import Unauthorized

TOKEN_PREFIX = "titer-"  # noqa: S105 - the public start of every key, not a secret


class Scope(StrEnum):
    """What a key may do."""

    #: Files, jobs and tuned models of the key's own project.
    CUSTOMER = "customer"
    #: See every project's jobs, and decide on held models.
    REVIEWER = "reviewer"
    #: Register bases, align, certify and evaluate them.
    PROVIDER = "provider"
    #: Run the service: tenants, keys, quotas and policies, and all that reviewers and providers may.
    OPERATOR = "operator"


#: Who sees every project's files, jobs and models.
STAFF = frozenset({Scope.REVIEWER, Scope.PROVIDER, Scope.OPERATOR})


class Project(Base):
    """A tenant: the owner of files, jobs and tuned models."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("proj"))
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    @property
    def organization_id(self) -> str:
        """The `organization_id` that OpenAI's objects require."""
        return "org-" + self.id.removeprefix("proj-")


class ApiKey(Base):
    """A key of one project. `hint` is its last four characters, for people to tell keys apart."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("key"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    token_sha256: Mapped[str] = mapped_column(unique=True)
    hint: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    revoked_at: Mapped[datetime | None]

    project: Mapped[Project] = relationship(lazy="joined")


def hash_token(token: str) -> str:
    """Hash a key for storage. A plain hash suffices: a token carries 256 random bits."""
    # Whatever a client sends as its key has a hash, be it text or not.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def create_key(
    session: Session, project: Project, name: str, scopes: frozenset[Scope]
) -> tuple[ApiKey, str]:
    """Make a key; the second value is the token, which cannot be had again."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        project=project,
        name=name,
        token_sha256=hash_token(token),
        hint=token[-4:],
        scopes=sorted(scopes),
    )
    session.add(key)
    session.flush()
    return key, token


def find_key(session: Session, token: str) -> ApiKey:
    """Give the living key for a token.

    Raises:
        Unauthorized: there is none, or it was revoked.
    """
    found = session.scalar(
        select(ApiKey).where(ApiKey.token_sha256 == hash_token(token), ApiKey.revoked_at.is_(None))
    )
    if found is None:
        raise Unauthorized
    return found
