"""Data risk reports by page, and signed safety reports."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.safety.report import make_report
from api.safety.signature import Signer
from models.data_risk import DataRiskNotFound, ScreenedRow, Screening
from models.errors import Unavailable
from models.job import Job
from models.model_version import ModelVersion
from models.settings import Settings
from models.storage import Storage


class NoSigningKey(Unavailable):
    """This service has no signing key, so it signs no reports. Its operator sets TITER_SIGNING_KEY."""

    code = "no_signing_key"


def signer(settings: Settings) -> Signer | None:
    """Give the service's signer, if it has a key."""
    seed = settings.signing_key.get_secret_value()
    return Signer(seed) if seed else None


def signed_report(
    session: Session, storage: Storage, settings: Settings, version: ModelVersion
) -> bytes:
    """Give the signed report on a released model.

    Raises:
        NoSigningKey: the service cannot sign.
        ModelBlocked: the gate has not released the model.
        StorageMissing: its files are gone, or are not those that were measured.
    """
    signing = signer(settings)
    if signing is None:
        raise NoSigningKey
    return signing.sign(make_report(session, storage, version))


def get_screening(session: Session, job: Job) -> Screening:
    """Give a job's screening.

    Raises:
        DataRiskNotFound: its training file was not screened.
    """
    screening = session.get(Screening, job.id)
    if screening is None:
        raise DataRiskNotFound(
            f"The training file of the job {job.id} was not screened. Create jobs with "
            '"screen": true to have it read before training.',
            param="fine_tuning_job_id",
        )
    return screening


def list_rows(
    session: Session, screening: Screening, *, after: int, limit: int, flagged: bool | None
) -> tuple[Sequence[ScreenedRow], bool]:
    """Give one page of rows after a line, and whether more follow.

    Args:
        session: an open session.
        screening: whose rows.
        after: the last line of the page before.
        limit: rows on the page.
        flagged: those that are flagged, those that are not, or (None) all.
    """
    query = select(ScreenedRow).where(
        ScreenedRow.job_id == screening.job_id, ScreenedRow.line > after
    )
    if flagged is True:
        # The first condition is the index's own.
        query = query.where(ScreenedRow.votes > 0, ScreenedRow.votes >= screening.votes_needed)
    elif flagged is False:
        query = query.where(ScreenedRow.votes < screening.votes_needed)
    found = session.scalars(query.order_by(ScreenedRow.line).limit(limit + 1)).all()
    return found[:limit], len(found) > limit
