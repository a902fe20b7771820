"""Files as clients see them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from api.schemas import Listing, Schema
from models.base import unix
from models.file import File

HOUR_SECONDS = 3600
MONTH_SECONDS = 30 * 24 * HOUR_SECONDS


class ExpiresAfter(Schema):
    """How long a file lives: an hour to thirty days from its creation."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=HOUR_SECONDS, le=MONTH_SECONDS)


class FileObject(Schema):
    """An uploaded data set, or a result of a job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    # Deprecated by OpenAI, but required and polled: rows are checked before the upload is answered.
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    rows: int | None = Field(description="Rows of a data set; beyond OpenAI's object.")
    sha256: str = Field(description="Hash of the bytes; beyond OpenAI's object.")

    @classmethod
    def of(cls, file: File) -> Self:
        """Show a stored file."""
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=unix(file.created_at),
            filename=file.filename,
            purpose=file.purpose,
            expires_at=unix(file.expires_at) if file.expires_at else None,
            rows=file.rows,
            sha256=file.sha256,
        )


class FileList(Listing[FileObject]):
    """A page of files, with the two ids that OpenAI's schema requires of this list."""

    first_id: str | None
    last_id: str | None
