"""Uploads: parts come in any order and at the same time, one completion makes one file of them.

The long work of a completion, reading the parts through the checks that every file goes through, is done
without any lock. What it then finds under the row's lock decides: of a completion, a cancellation and another
completion at the same moment the first wins, and the same completion sent twice gives the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from api.files.intake import Content, EmptyFile, FileTooLarge, checked, known_purpose, taking_in
from api.files.service import clean_filename, store_file
from api.locks import lock_name
from api.organization.quotas import check_bytes
from api.uploads.schemas import MAX_PARTS, CreateUpload
from models.base import utc_now
from models.errors import Conflict, DomainError, NotFound
from models.file import File, is_present
from models.session import SessionFactory
from models.storage import Storage
from models.upload import Upload, UploadPart, UploadStatus

MAX_PENDING = 16
# A client that hears no answer sends a part up to three times, and only one of them is named in the end.
MAX_SENDINGS = 3
# A completion that began in time may go on while it reads the parts.
COMPLETION_GRACE = timedelta(minutes=15)
MAX_SWEPT = 1_000


class UploadNotFound(NotFound):
    """No such upload."""

    code = "upload_not_found"


class PartNotFound(NotFound):
    """No such part."""

    code = "part_not_found"


class UploadNotPending(Conflict):
    """The upload has ended: it is completed, cancelled or expired."""

    code = "upload_not_pending"


class TooManyUploads(Conflict):
    """Too many uploads of this project are pending. Complete or cancel one of them."""

    code = "too_many_uploads"


class TooManyParts(DomainError):
    """The upload has too many parts, or parts of too many bytes."""

    code = "too_many_parts"


class WrongParts(DomainError):
    """The named parts do not make the declared file."""

    code = "invalid_parts"


class WrongChecksum(DomainError):
    """The bytes that arrived have another MD5 than the request says."""

    code = "checksum_mismatch"


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one completion, in order, and what they are to make."""

    upload_id: str
    part_ids: tuple[str, ...]
    keys: tuple[str, ...]
    bytes: int
    purpose: str


def create_upload(
    session: Session, project_id: str, asked: CreateUpload, *, max_bytes: int
) -> Upload:
    """Declare a file.

    Raises:
        UnsupportedPurpose: files cannot be uploaded for that.
        FileTooLarge: it will be larger than the service accepts.
        TooManyUploads: others wait to be completed.
    """
    if asked.bytes > max_bytes:
        raise FileTooLarge(f"The file is larger than {max_bytes:,} bytes.", param="bytes")
    lock_name(session, "uploads", project_id)
    pending = session.scalar(
        select(func.count())
        .select_from(Upload)
        .where(
            Upload.project_id == project_id,
            Upload.status == UploadStatus.PENDING,
            Upload.expires_at > utc_now(),
        )
    )
    if (pending or 0) >= MAX_PENDING:
        raise TooManyUploads
    upload = Upload(
        project_id=project_id,
        filename=clean_filename(asked.filename),
        purpose=known_purpose(asked.purpose),
        mime_type=asked.mime_type,
        bytes=asked.bytes,
        file_life_seconds=asked.expires_after.seconds if asked.expires_after else None,
    )
    session.add(upload)
    session.flush()
    return upload


def get_pending(
    session: Session, project_id: str, upload_id: str, *, is_locked: bool = False
) -> Upload:
    """Give an upload that has not ended.

    Raises:
        UploadNotFound: it is absent, or another project's.
        UploadNotPending: it has ended.
    """
    upload = _get(session, project_id, upload_id, is_locked=is_locked)
    _refuse_ended(upload)
    return upload


def add_part(
    session: Session, project_id: str, upload_id: str, *, part_id: str, size: int
) -> UploadPart:
    """Record a part whose bytes are in storage.

    Raises:
        EmptyFile: it has no bytes.
        UploadNotFound: the upload is absent, or another project's.
        UploadNotPending: it ended while the part was on its way.
        TooManyParts: it has too many parts, or too many bytes in them.
        QuotaExceeded: the project may not store so much more.
    """
    if size == 0:
        raise EmptyFile("The part has no bytes.", param="data")
    upload = get_pending(session, project_id, upload_id, is_locked=True)
    count, total = session.execute(
        select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0)).where(
            UploadPart.upload_id == upload_id
        )
    ).one()
    if count >= MAX_PARTS:
        raise TooManyParts(f"An upload may have {MAX_PARTS:,} parts.", param="data")
    if size > upload.bytes or total + size > MAX_SENDINGS * upload.bytes:
        raise TooManyParts(
            f"The parts have more bytes than the {upload.bytes:,} that were declared.", param="data"
        )
    check_bytes(session, project_id, size)
    part = UploadPart(id=part_id, upload_id=upload_id, bytes=size)
    session.add(part)
    session.flush()
    return part


def plan_completion(
    session: Session, project_id: str, upload_id: str, part_ids: Sequence[str]
) -> Assembly | Upload:
    """Say what is to be put together, or give the upload that this same completion ended before.

    Raises:
        UploadNotFound: the upload is absent, or another project's.
        UploadNotPending: it ended in another way.
        PartNotFound: a part is not one of this upload.
        WrongParts: a part is named twice, or together they have not the declared size.
    """
    upload = _get(session, project_id, upload_id)
    if _is_completed_by(upload, part_ids):
        return upload
    _refuse_ended(upload)
    parts = {
        part.id: part
        for part in session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id))
    }
    for part_id in part_ids:
        if part_id not in parts:
            raise PartNotFound(f"No part {part_id[:64]!r} in this upload.", param="part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise WrongParts("A part is named more than once.", param="part_ids")
    total = sum(parts[part_id].bytes for part_id in part_ids)
    if total != upload.bytes:
        raise WrongParts(
            f"The parts have {total:,} bytes, but {upload.bytes:,} were declared.", param="part_ids"
        )
    return Assembly(
        upload_id=upload.id,
        part_ids=tuple(part_ids),
        keys=tuple(parts[part_id].storage_key for part_id in part_ids),
        bytes=upload.bytes,
        purpose=upload.purpose,
    )


@contextmanager
def assembled(storage: Storage, assembly: Assembly, *, md5: str | None) -> Iterator[Content]:
    """Put the parts together, check the whole, and lend it; what is not kept is removed.

    Raises:
        StorageMissing: the parts were removed, for the upload has ended.
        WrongChecksum: the bytes are not those that the customer meant.
        InvalidRows: rows are faulty; the error names each of them.
    """
    digest = hashlib.md5(usedforsecurity=False)
    chunks: Iterable[bytes] = chain.from_iterable(storage.stream(key) for key in assembly.keys)
    with taking_in(storage, max_bytes=assembly.bytes) as taken:
        for chunk in chunks:
            taken.write(chunk)
            if md5 is not None:
                digest.update(chunk)
        if md5 is not None and digest.hexdigest() != md5.lower():
            raise WrongChecksum(param="md5")
    with checked(storage, taken.content, assembly.purpose) as content:
        yield content


def complete_upload(
    session: Session, storage: Storage, project_id: str, assembly: Assembly, content: Content
) -> Upload:
    """Make the file, unless the upload ended in the meantime.

    Raises:
        UploadNotPending: it was cancelled, or completed with other parts.
        QuotaExceeded: the project may not store so much, even without the parts.
    """
    upload = _get(session, project_id, assembly.upload_id, is_locked=True)
    if _is_completed_by(upload, assembly.part_ids):
        return upload
    if upload.status != UploadStatus.PENDING:
        _refuse_ended(upload)
    # Before the file is counted: from here on its parts are not.
    upload.status = UploadStatus.COMPLETED
    file = store_file(
        session,
        storage,
        content,
        project_id=project_id,
        filename=upload.filename,
        purpose=upload.purpose,
        life_seconds=upload.file_life_seconds,
    )
    upload.file_id = file.id
    upload.part_ids = list(assembly.part_ids)
    return upload


def made_file(session: Session, upload: Upload) -> File | None:
    """Give the file that an upload became, as long as it is there."""
    return session.scalar(select(File).where(File.id == upload.file_id, is_present(utc_now())))


def cancel_upload(session: Session, project_id: str, upload_id: str) -> Upload:
    """Give an upload up; one that was cancelled before stays so.

    Raises:
        UploadNotFound: it is absent, or another project's.
        UploadNotPending: it is completed or expired.
    """
    upload = _get(session, project_id, upload_id, is_locked=True)
    if upload.status != UploadStatus.CANCELLED:
        _refuse_ended(upload)
        upload.status = UploadStatus.CANCELLED
    return upload


def expire_uploads(sessions: SessionFactory) -> int:
    """End the uploads that nobody completed in time; count them."""
    with sessions.begin() as session:
        expired = session.scalars(
            update(Upload)
            .where(
                Upload.status == UploadStatus.PENDING,
                Upload.expires_at < utc_now() - COMPLETION_GRACE,
            )
            .values(status=UploadStatus.EXPIRED)
            .returning(Upload.id)
        ).all()
    return len(expired)


def clean_uploads(sessions: SessionFactory, storage: Storage) -> int:
    """Remove the parts of uploads that have ended; count the uploads."""
    with sessions() as session:
        ended = session.scalars(
            select(Upload.id)
            .where(Upload.status != UploadStatus.PENDING, Upload.cleaned_at.is_(None))
            .limit(MAX_SWEPT)
        ).all()
    for upload_id in ended:
        with sessions.begin() as session:
            # No part is added to an upload that has ended, so these are all.
            parts = session.scalars(
                select(UploadPart).where(UploadPart.upload_id == upload_id)
            ).all()
            for part in parts:
                storage.delete(part.storage_key)
            session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))
            session.execute(
                update(Upload).where(Upload.id == upload_id).values(cleaned_at=utc_now())
            )
    return len(ended)


def _get(session: Session, project_id: str, upload_id: str, *, is_locked: bool = False) -> Upload:
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)
    if is_locked:
        query = query.with_for_update().execution_options(populate_existing=True)
    upload = session.scalar(query)
    if upload is None:
        raise UploadNotFound(f"No upload {upload_id[:64]!r} in this project.", param="upload_id")
    return upload


def _refuse_ended(upload: Upload) -> None:
    status = upload.status_at(utc_now())
    if status != UploadStatus.PENDING:
        raise UploadNotPending(f"The upload {upload.id} is {status}.", param="upload_id")


def _is_completed_by(upload: Upload, part_ids: Sequence[str]) -> bool:
    return upload.status == UploadStatus.COMPLETED and upload.part_ids == list(part_ids)
