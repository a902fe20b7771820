"""Uploads as clients see them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from api.files.schemas import ExpiresAfter, FileObject
from api.schemas import Identifier, Schema
from models.base import unix, utc_now
from models.file import File
from models.upload import Upload, UploadPart

MAX_PARTS = 1_000
MD5_PATTERN = "^[0-9a-fA-F]{32}$"

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class CreateUpload(Schema):
    """What the file will be."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "bytes": 200_000_000,
                    "filename": "train.jsonl",
                    "mime_type": "text/jsonl",
                    "purpose": "fine-tune",
                    "expires_after": {"anchor": "created_at", "seconds": 86_400},
                },
            ]
        }
    )

    bytes: int = Field(ge=1, description="What the parts will add up to.")
    filename: ShortText
    mime_type: ShortText = Field(
        description="Kept, never believed: the rows themselves are checked."
    )
    purpose: ShortText
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Schema):
    """How the parts make the file."""

    part_ids: list[Identifier] = Field(min_length=1, max_length=MAX_PARTS)
    md5: str | None = Field(
        None, pattern=MD5_PATTERN, description="Of the whole file, in hexadecimal digits."
    )


class UploadObject(Schema):
    """A file on its way, and the file that it became."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None

    @classmethod
    def of(cls, upload: Upload, file: File | None = None) -> Self:
        """Show an upload."""
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=unix(upload.created_at),
            expires_at=unix(upload.expires_at),
            filename=upload.filename,
            purpose=upload.purpose,
            status=upload.status_at(utc_now()).value,
            file=FileObject.of(file) if file else None,
        )


class PartObject(Schema):
    """A part that arrived."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: UploadPart) -> Self:
        """Show a part."""
        return cls(id=part.id, created_at=unix(part.created_at), upload_id=part.upload_id)
