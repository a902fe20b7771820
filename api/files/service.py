"""Files: every row is checked before a byte is kept; bytes are kept once per content.

Rows of the table share bytes by hash, between tenants too. Whoever stores or removes bytes holds the lock of
that hash, so that an upload never loses its bytes to somebody else's deletion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import IO

from sqlalchemy import or_, select, tuple_
from sqlalchemy.orm import Session

from api.locks import lock_name
from api.organization.quotas import check_bytes
from models.base import utc_now
from models.errors import Conflict, DomainError
from models.file import File, FileNotFound, content_key, get_file
from models.job import TERMINAL, Job
from models.rows import MAX_LINE_BYTES, check_rows
from models.session import SessionFactory
from models.storage import CHUNK_BYTES, Storage

FINE_TUNE = "fine-tune"
MAX_FILENAME = 255


class UnsupportedPurpose(DomainError):
    """Only files with purpose 'fine-tune' can be uploaded."""

    code = "unsupported_purpose"


class FileInUse(Conflict):
    """A job that has not ended uses the file."""

    code = "file_in_use"


def store_file(
    session: Session,
    storage: Storage,
    content: IO[bytes],
    *,
    project_id: str,
    filename: str,
    purpose: str,
) -> File:
    """Check every row of an upload, then keep it.

    Raises:
        UnsupportedPurpose: it is meant for something that Titer does not do.
        InvalidRows: rows are faulty; the error names each of them.
        QuotaExceeded: the project may not store so much more.
    """
    if purpose != FINE_TUNE:
        raise UnsupportedPurpose(param="purpose")
    content.seek(0)
    rows = check_rows(bounded_lines(content))
    content.seek(0)
    digest = hashlib.sha256()
    size = 0
    while chunk := content.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    sha256 = digest.hexdigest()
    check_bytes(session, project_id, size)
    lock_name(session, "file", sha256)
    key = content_key(sha256)
    if not storage.exists(key):
        content.seek(0)
        storage.put(key, content)
    file = File(
        project_id=project_id,
        filename=clean_filename(filename),
        purpose=purpose,
        bytes=size,
        sha256=sha256,
        rows=rows,
    )
    session.add(file)
    session.flush()
    return file


def bounded_lines(content: IO[bytes]) -> Iterator[bytes]:
    """Give the lines of a file, each cut just beyond the longest that a row may have.

    The row parser refuses such a line by its length; the rest of it is skipped, so a file without a single
    line break is never held in memory.
    """
    while line := content.readline(MAX_LINE_BYTES + 2):
        yield line
        while not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES + 2:
            line = content.readline(MAX_LINE_BYTES + 2)


def clean_filename(name: str) -> str:
    """Keep the last part of a file's name, without characters that nobody can see."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:MAX_FILENAME] or "upload.jsonl"


def list_files(
    session: Session,
    project_id: str,
    *,
    limit: int,
    after: str | None,
    is_ascending: bool,
    purpose: str | None,
) -> tuple[Sequence[File], bool]:
    """Give one page of a project's files, and whether more follow."""
    place = tuple_(File.created_at, File.id)
    query = select(File).where(File.project_id == project_id, File.deleted_at.is_(None))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    if after is not None:
        last = get_file(session, project_id, after)
        here = tuple_(last.created_at, last.id)
        query = query.where(place > here if is_ascending else place < here)
    order = (File.created_at, File.id) if is_ascending else (File.created_at.desc(), File.id.desc())
    found = session.scalars(query.order_by(*order).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def delete_file(session: Session, project_id: str, file_id: str) -> File:
    """Forget a file. Its bytes go with `remove_bytes`, after the commit.

    Raises:
        FileNotFound: it is absent, deleted, or another project's.
        FileInUse: a job that has not ended trains or validates on it.
    """
    # The lock makes a job that is being created on this file wait, and then not find it.
    file = session.scalar(
        select(File)
        .where(File.id == file_id, File.project_id == project_id, File.deleted_at.is_(None))
        .with_for_update()
    )
    if file is None:
        raise FileNotFound(f"No file {file_id[:64]!r} in this project.", param="file_id")
    user = session.scalar(
        select(Job.id)
        .where(
            or_(Job.training_file_id == file.id, Job.validation_file_id == file.id),
            Job.status.not_in(TERMINAL),
        )
        .limit(1)
    )
    if user is not None:
        raise FileInUse(f"The job {user} uses this file and has not ended.", param="file_id")
    file.deleted_at = utc_now()
    return file


def remove_bytes(sessions: SessionFactory, storage: Storage, sha256: str) -> None:
    """Remove the bytes of a content that no file has any more."""
    with sessions.begin() as session:
        lock_name(session, "file", sha256)
        keeper = session.scalar(
            select(File.id).where(File.sha256 == sha256, File.deleted_at.is_(None)).limit(1)
        )
        if keeper is None:
            storage.delete(content_key(sha256))
