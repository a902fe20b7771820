"""A file that comes in parts: declared, sent in any order, put together in one.

    pending ──► completed      the parts became a file
       ├──────► cancelled      the customer's wish
       └──────► expired        nobody completed it in time

Whoever changes the status or adds a part holds the row's lock. Parts lie below `INCOMING` until the upload
has ended; then the sweeper removes them.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, new_id, utc_now

#: Where bytes lie before they are anybody's: parts, and files that are being checked.
INCOMING = "incoming"
UPLOAD_LIFE = timedelta(hours=1)
MAX_PART_BYTES = 64 * 1024 * 1024


class UploadStatus(StrEnum):
    """OpenAI's words."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Upload(Base):
    """One file on its way: what it will be, and how far it has come."""

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint(
            "status in ('pending', 'completed', 'cancelled', 'expired')", name="status"
        ),
        Index("ix_uploads_project_id_status", "project_id", "status"),
        Index("ix_uploads_status_expires_at", "status", "expires_at"),
        Index("ix_uploads_cleaned_at_status", "cleaned_at", "status"),
    )

    id: Mapped[str] = mapped_column(
        primary_key=True, default=lambda: new_id("upload", separator="_")
    )
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    mime_type: Mapped[str]
    #: What the parts must add up to.
    bytes: Mapped[int] = mapped_column(BigInteger)
    #: How long the file will live, once it is one.
    file_life_seconds: Mapped[int | None]
    status: Mapped[str] = mapped_column(default=UploadStatus.PENDING)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(default=lambda: utc_now() + UPLOAD_LIFE)
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    #: The order that made the file: a client that heard no answer completes again with the same.
    part_ids: Mapped[list[Any] | None]
    #: When the parts of an ended upload were removed.
    cleaned_at: Mapped[datetime | None]

    def status_at(self, now: datetime) -> UploadStatus:
        """Give the status as a client sees it: expired to the second, whenever the sweeper comes by."""
        if self.status == UploadStatus.PENDING and self.expires_at <= now:
            return UploadStatus.EXPIRED
        return UploadStatus(self.status)


class UploadPart(Base):
    """One piece of the bytes. Parts have no order of their own: the completion names it."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("part", separator="_"))
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    @property
    def storage_key(self) -> str:
        """Where the bytes are until the upload has ended."""
        return incoming_key(self.id)


def incoming_key(name: str) -> str:
    """Give the storage key of bytes that are not yet anybody's."""
    return f"{INCOMING}/{name}"
