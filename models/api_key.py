"""API keys of projects. A key is shown once; only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from sqlalchemy import ForeignKey, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship
from sqlalchemy.types import String

from models.base import Base, new_id, utc_now
from models.errors import Unauthorized
from models.project import Project as Project
from models.scope import Scope

TOKEN_PREFIX = "titer-"  # noqa: S105 - the public start of every key, not a secret
# A key's last use is noted at most this often: every request would be a write otherwise.
USE_NOTED_EVERY = timedelta(minutes=1)


class ApiKey(Base):
    """A key of one project. `hint` is its last four characters, for people to tell keys apart."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("key"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    #: Who holds it; None for a program's.
    user_name: Mapped[str | None]
    #: Of a person who signs in elsewhere: issuer and subject. The secret of such a key nobody has.
    identity: Mapped[str | None] = mapped_column(unique=True)
    token_sha256: Mapped[str] = mapped_column(unique=True)
    hint: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    #: To the minute.
    last_used_at: Mapped[datetime | None]

    project: Mapped[Project] = relationship(lazy="joined")

    @property
    def why_dead(self) -> str | None:
        """Why the key opens nothing, as a sentence; None while it lives."""
        if self.revoked_at is not None:
            return "This API key was revoked."
        if self.expires_at is not None and self.expires_at <= utc_now():
            return "This API key has expired."
        if self.project.archived_at is not None:
            return "The project of this API key is archived."
        return None


def hash_token(token: str) -> str:
    """Hash a key for storage. A plain hash suffices: a token carries 256 random bits."""
    # Whatever a client sends as its key has a hash, be it text or not.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def create_key(
    session: Session,
    project: Project,
    name: str,
    scopes: frozenset[Scope],
    *,
    user_name: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; the second value is the token, which cannot be had again."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        project=project,
        name=name,
        user_name=user_name,
        token_sha256=hash_token(token),
        hint=token[-4:],
        scopes=sorted(scopes),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, token


def find_key(session: Session, token: str) -> ApiKey:
    """Give the living key for a token.

    Raises:
        Unauthorized: there is none; it was revoked or has expired; or its project is archived.
    """
    found = session.scalar(select(ApiKey).where(ApiKey.token_sha256 == hash_token(token)))
    if found is None:
        raise Unauthorized
    if (reason := found.why_dead) is not None:
        raise Unauthorized(reason)
    return found


def note_use(session: Session, key: ApiKey) -> None:
    """Remember that the key was used, to the minute. The caller commits."""
    due = utc_now() - USE_NOTED_EVERY
    if key.last_used_at is not None and key.last_used_at > due:
        return
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == key.id, or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= due))
        .values(last_used_at=utc_now())
        .execution_options(synchronize_session=False)
    )
