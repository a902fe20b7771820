"""Data risk reports by page, the texts under the numbers, and signed safety reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.safety.report import make_report
from api.safety.signature import Signer
from models.answers import AnswerVerdict, TestAnswer, read_answers
from models.api_key import ApiKey
from models.audit import record
from models.data_risk import DataRiskNotFound, ScreenedRow, Screening
from models.errors import NotFound, Unavailable
from models.evaluation import Evaluation, latest_evaluation
from models.file import content_key, get_held_file
from models.job import Job
from models.model_version import ModelVersion
from models.settings import Settings
from models.storage import Storage


class NoSigningKey(Unavailable):
    """This service has no signing key, so it signs no reports. Its operator sets TITER_SIGNING_KEY."""

    code = "no_signing_key"


class RowNotFound(NotFound):
    """The training file has no such row."""

    code = "row_not_found"


class AnswersNotFound(NotFound):
    """The answers to the test prompts were not kept for this model."""

    code = "answers_not_found"


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


def read_texts(
    session: Session, storage: Storage, job: Job, rows: Sequence[ScreenedRow], *, by: ApiKey | None
) -> dict[int, dict[str, Any]]:
    """Give screened rows as they were uploaded, by their line.

    Args:
        session: an open session.
        storage: where the file lies.
        job: whose training file.
        rows: which of its rows, in the order of their lines.
        by: the member of staff who reads them, for the audit log; None: the file's own customer.

    Raises:
        FileNotFound: the file was deleted.
    """
    file = get_held_file(session, job.project_id, job.training_file_id or "")
    wanted = {row.line for row in rows}
    texts: dict[int, dict[str, Any]] = {}
    lines = islice(storage.lines(content_key(file.sha256)), max(wanted, default=0))
    for number, content in enumerate(lines, start=1):
        if number in wanted:
            texts[number] = json.loads(content)
    if by is not None:
        record(
            session,
            actor=by,
            action="data_risk.rows_read",
            subject=("job", job.id),
            project_id=job.project_id,
            details={"lines": sorted(texts), "file": file.id},
        )
    return texts


def get_row(session: Session, job: Job, line: int) -> ScreenedRow:
    """Give one screened row.

    Raises:
        RowNotFound: the line was not screened.
    """
    row = session.get(ScreenedRow, (job.id, line))
    if row is None:
        raise RowNotFound(f"The training file of the job {job.id} has no screened line {line}.")
    return row


@dataclass(frozen=True, slots=True)
class AnswerPage:
    """Some answers of an evaluation, each with its place from 1."""

    evaluation: Evaluation
    answers: tuple[tuple[int, TestAnswer], ...]
    has_more: bool


def list_answers(
    session: Session,
    storage: Storage,
    version: ModelVersion,
    *,
    job_id: str | None = None,
    after: int,
    limit: int,
    verdict: AnswerVerdict | None,
) -> AnswerPage:
    """Give a page of a model's answers. Whoever shows their texts notes the reading.

    Args:
        session: an open session.
        storage: where answers are kept.
        version: the model.
        job_id: the job that asked; none: those that speak for the model.
        after: the place of the last answer that was seen.
        limit: most answers on the page.
        verdict: what the deciding judge says of them; none: whatever it says.

    Raises:
        AnswersNotFound: the model was not measured (by that job), or its answers were not kept.
    """
    evaluation = latest_evaluation(session, version.id, job_id=job_id)
    sha256 = evaluation.parsed().answers_sha256 if evaluation else None
    if evaluation is None or sha256 is None:
        raise AnswersNotFound
    wanted = [
        (place, answer)
        for place, answer in enumerate(read_answers(storage, sha256), start=1)
        if place > after and verdict in (None, answer.verdict)
    ]
    return AnswerPage(evaluation, tuple(wanted[:limit]), len(wanted) > limit)


def note_answers_read(
    session: Session, version: ModelVersion, page: AnswerPage, *, by: ApiKey
) -> None:
    """Write into the audit log that somebody reads these answers."""
    record(
        session,
        actor=by,
        action="evaluation.answers_read",
        subject=("model", version.id),
        project_id=version.project_id,
        details={
            "evaluation": page.evaluation.id,
            "first": page.answers[0][0] if page.answers else None,
            "answers": len(page.answers),
        },
    )
