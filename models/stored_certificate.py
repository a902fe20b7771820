"""Where certificates are kept: a row with the summary, and the three files of the report in the storage.

A drill's report is kept in the same way, but is no certificate of its model.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, new_id, utc_now
from models.certificate import CertificateSummary
from models.certification_plans import DRILL
from models.errors import NotFound

#: The files below a certificate's prefix.
JSON_FILE, PAGE_FILE, PICTURE_FILE = "certificate.json", "certificate.html", "certificate.png"


class CertificateNotFound(NotFound):
    """The model has no certificate."""

    code = "certificate_not_found"


class StoredCertificate(Base):
    """One stored certificate; its files are in the storage, below `prefix`."""

    __tablename__ = "certificates"
    __table_args__ = (Index("ix_certificates_version_id_created_at", "version_id", "created_at"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("cert"))
    version_id: Mapped[str] = mapped_column(ForeignKey("model_versions.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    plan_hash: Mapped[str]
    summary: Mapped[dict[str, Any]]
    prefix: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    def parsed(self) -> CertificateSummary:
        """Read the stored summary back into its type."""
        return CertificateSummary.model_validate(self.summary)


def latest_certificates(
    session: Session, version_ids: Collection[str]
) -> dict[str, StoredCertificate]:
    """Give the newest certificate of each version that has one; drills are none."""
    if not version_ids:
        return {}
    newest = (
        select(StoredCertificate)
        .where(
            StoredCertificate.version_id.in_(version_ids),
            StoredCertificate.summary["plan"].astext.is_distinct_from(DRILL),
        )
        .ext(distinct_on(StoredCertificate.version_id))
        .order_by(
            StoredCertificate.version_id,
            StoredCertificate.created_at.desc(),
            StoredCertificate.id.desc(),
        )
    )
    return {certificate.version_id: certificate for certificate in session.scalars(newest)}


def latest_drill(session: Session, version_id: str) -> StoredCertificate | None:
    """Give what the newest finished drill on a version found."""
    return session.scalar(
        select(StoredCertificate)
        .where(
            StoredCertificate.version_id == version_id,
            StoredCertificate.summary["plan"].astext == DRILL,
        )
        .order_by(StoredCertificate.created_at.desc(), StoredCertificate.id.desc())
        .limit(1)
    )
