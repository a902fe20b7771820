"""An uploaded or produced file. Bytes live in storage under their hash; rows share them.

A file that has expired is gone at once for whoever names it. Its bytes go when the sweeper comes by, and not
before the last job on it has ended: the job holds the file, and reads it by `get_held_file`.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, ForeignKey, Index, and_, or_, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, new_id, utc_now
from models.errors import NotFound


class FileNotFound(NotFound):
    """No such file."""

    code = "file_not_found"


class File(Base):
    """One file of a project. `rows` is set for data sets, whose every row was parsed on arrival."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_project_id_created_at_id", "project_id", "created_at", "id"),
        # Both are for the sweeper, which looks every few seconds and nearly always finds nothing.
        Index("ix_files_expires_at", "expires_at", postgresql_where=text("deleted_at is null")),
        Index(
            "ix_files_leftover",
            "sha256",
            postgresql_where=text("deleted_at is not null and removed_at is null"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("file"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(index=True)
    rows: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    #: From then on nobody finds the file.
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    #: When, after the deletion, the bytes were seen to; the sweeper looks for those that were not.
    removed_at: Mapped[datetime | None]

    @property
    def storage_key(self) -> str:
        """Where the bytes are."""
        return content_key(self.sha256)


def content_key(sha256: str) -> str:
    """Give the storage key of content-addressed bytes."""
    return f"files/{sha256[:2]}/{sha256}"


def is_present(now: datetime) -> ColumnElement[bool]:
    """Select the files that are neither deleted nor expired."""
    return and_(File.deleted_at.is_(None), or_(File.expires_at.is_(None), File.expires_at > now))


def get_file(session: Session, project_id: str, file_id: str) -> File:
    """Give a file of the project.

    Raises:
        FileNotFound: it is absent, deleted, expired, or another project's.
    """
    file = session.scalar(
        select(File).where(File.id == file_id, File.project_id == project_id, is_present(utc_now()))
    )
    if file is None:
        raise missing(file_id)
    return file


def get_held_file(session: Session, project_id: str, file_id: str) -> File:
    """Give a file that a job of the project needs, be it expired since the job was made.

    Raises:
        FileNotFound: it is absent, deleted, or another project's.
    """
    file = session.scalar(
        select(File).where(
            File.id == file_id, File.project_id == project_id, File.deleted_at.is_(None)
        )
    )
    if file is None:
        raise missing(file_id)
    return file


def missing(file_id: str) -> FileNotFound:
    """Make the error for a file that the project does not have."""
    return FileNotFound(f"No file {file_id[:64]!r} in this project.", param="file_id")
