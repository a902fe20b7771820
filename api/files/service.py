"""Files: every row is checked before a byte is kept; bytes are kept once per content.

Rows of the table share bytes by hash, between tenants too. Whoever stores or removes bytes holds the lock of
that hash, so that an upload never loses its bytes to somebody else's deletion.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, exists, or_, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.files.intake import Content
from api.locks import lock_name
from api.organization.quotas import check_bytes
from models.base import utc_now
from models.errors import Conflict
from models.file import File, content_key, is_present, missing
from models.job import TERMINAL, Job
from models.session import SessionFactory
from models.storage import Storage

MAX_FILENAME = 255
MAX_SWEPT = 1_000


class FileInUse(Conflict):
    """A job that has not ended uses the file."""

    code = "file_in_use"


def store_file(
    session: Session,
    storage: Storage,
    content: Content,
    *,
    project_id: str,
    filename: str,
    purpose: str,
    life_seconds: int | None = None,
) -> File:
    """Keep content that was checked. Every file of a customer is made here, however its bytes came.

    Args:
        session: its transaction holds the content's lock from here on.
        storage: where the content lies.
        content: what `checked` lends; it is moved to its hash.
        project_id: whose file it will be.
        filename: as the customer calls it; cleaned.
        purpose: the one that the content was checked for.
        life_seconds: after so long the file expires; never, when absent.

    Raises:
        QuotaExceeded: the project may not store so much more.
    """
    check_bytes(session, project_id, content.bytes)
    lock_name(session, "file", content.sha256)
    storage.move(content.key, content_key(content.sha256))
    now = utc_now()
    file = File(
        project_id=project_id,
        filename=clean_filename(filename),
        purpose=purpose,
        bytes=content.bytes,
        sha256=content.sha256,
        rows=content.rows,
        created_at=now,
        expires_at=None if life_seconds is None else now + timedelta(seconds=life_seconds),
    )
    session.add(file)
    session.flush()
    return file


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
    """Give one page of a project's files, and whether more follow.

    Raises:
        FileNotFound: the project never had a file `after`.
    """
    place = tuple_(File.created_at, File.id)
    query = select(File).where(File.project_id == project_id, is_present(utc_now()))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    if after is not None:
        # It may be gone: who deletes the files of a page asks for those that follow all the same.
        last = session.get(File, after)
        if last is None or last.project_id != project_id:
            raise missing(after)
        here = tuple_(last.created_at, last.id)
        query = query.where(place > here if is_ascending else place < here)
    order = (File.created_at, File.id) if is_ascending else (File.created_at.desc(), File.id.desc())
    found = session.scalars(query.order_by(*order).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def delete_file(session: Session, project_id: str, file_id: str) -> File:
    """Forget a file. Its bytes go with `remove_bytes`, after the commit.

    Raises:
        FileNotFound: it is absent, deleted, expired, or another project's.
        FileInUse: a job that has not ended trains or validates on it.
    """
    # The lock makes a job that is being created on this file wait, and then not find it.
    file = session.scalar(
        select(File)
        .where(File.id == file_id, File.project_id == project_id, is_present(utc_now()))
        .with_for_update()
    )
    if file is None:
        raise missing(file_id)
    user = session.scalar(select(Job.id).where(_holds(file.id)).limit(1))
    if user is not None:
        raise FileInUse(f"The job {user} uses this file and has not ended.", param="file_id")
    file.deleted_at = utc_now()
    return file


def remove_bytes(sessions: SessionFactory, storage: Storage, sha256: str) -> None:
    """Remove the bytes of a content that no file has any more."""
    with sessions.begin() as session:
        lock_name(session, "file", sha256)
        # Marked before the look: a file that is deleted in between keeps its own turn.
        session.execute(
            update(File)
            .where(File.sha256 == sha256, File.deleted_at.is_not(None), File.removed_at.is_(None))
            .values(removed_at=utc_now())
        )
        keeper = session.scalar(
            select(File.id).where(File.sha256 == sha256, File.deleted_at.is_(None)).limit(1)
        )
        if keeper is None:
            storage.delete(content_key(sha256))


def delete_expired(sessions: SessionFactory) -> int:
    """Forget the files whose time is over, except those that a job still needs; count them."""
    overdue = (
        File.deleted_at.is_(None),
        File.expires_at <= utc_now(),
        ~exists().where(_holds(File.id)),
    )
    with sessions() as session:
        ids = session.scalars(select(File.id).where(*overdue).limit(MAX_SWEPT)).all()
    deleted = 0
    for file_id in ids:
        with sessions.begin() as session:
            # A job made at the last moment has its own lock on the row; then its hold is seen here.
            file = session.scalar(select(File).where(File.id == file_id).with_for_update())
            if file is not None and session.scalar(
                select(File.id).where(File.id == file_id, *overdue)
            ):
                file.deleted_at = utc_now()
                deleted += 1
    return deleted


def remove_leftovers(sessions: SessionFactory, storage: Storage) -> int:
    """Remove the bytes that deletions left behind; count the contents."""
    with sessions() as session:
        left = session.scalars(
            select(File.sha256)
            .where(File.deleted_at.is_not(None), File.removed_at.is_(None))
            .distinct()
            .limit(MAX_SWEPT)
        ).all()
    for sha256 in left:
        remove_bytes(sessions, storage, sha256)
    return len(left)


def _holds(file_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Select the jobs that have not ended and need the file."""
    return or_(Job.training_file_id == file_id, Job.validation_file_id == file_id) & (
        Job.status.not_in(TERMINAL)
    )
