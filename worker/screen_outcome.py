"""What the policy makes of a screening: summed up, told, written down, and carried out on the rows.

Whoever gets here a second time, after a crash, finds what was decided and carries it out again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar, assert_never

from sqlalchemy.orm import Session

from models.base import utc_now
from models.certificate import Certificate
from models.data_risk import (
    MAX_LINES_NAMED,
    DataReview,
    DataRisk,
    ExpectedHarm,
    FlaggedRow,
    Screening,
    decide_on_rows,
    expected_harm,
    flagged_rows,
)
from models.errors import DomainError
from models.evaluation import JudgeIdentity
from models.hyperparameters import Recipe
from models.job import Job, Stage, append_event, await_review
from models.moderation import CheckLevel, CheckResult, tell_checks
from models.policy import current_policy
from models.rate import Rate
from models.rows import Message
from models.stored_certificate import JSON_FILE, latest_certificates
from worker.leased_job import LeasedJob
from worker.work import Work, Workshop

MAX_LINES_IN_EVENT = 100
UNCATEGORISED = "uncategorised"


class Exchanges(Protocol):
    """A training row, of whatever shape: the turns that it teaches, and its line."""

    @property
    def line(self) -> int:
        """Its number in the file, counted from 1."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """Its turns."""


Row = TypeVar("Row", bound=Exchanges)


class HarmfulTrainingData(DomainError):
    """The training file has more harmful rows than the policy allows."""

    code = "harmful_training_data"

    def __init__(self, message: str, lines: Sequence[int]) -> None:
        """Keep the sentence and the first lines."""
        super().__init__(message, param="training_file")
        self._lines = list(lines)

    def extra(self) -> dict[str, object]:
        """The first flagged lines, without their text."""
        return {"lines": self._lines}


class DataHeld(Exception):
    """The job waits for a person to look at its training file: let go of it, and write nothing."""


def conclude(job: LeasedJob, work: Work, rows: Sequence[Row], shop: Workshop) -> Work:
    """Sum up, tell, and write down what the policy makes of it, in one transaction."""
    with shop.sessions() as session:
        flagged = flagged_rows(session, session.get_one(Screening, job.id))
    share = Rate(count=len(flagged), n=len(rows))
    expected = _expected(work, share, shop)
    with job.write() as (session, row):
        screening = session.get_one(Screening, job.id)
        risk = _sum_up(screening, share, flagged, expected)
        screening.summary = risk.model_dump(mode="json")
        screening.finished_at = utc_now()
        _tell(session, row, risk)
        if risk.outcome == "held":
            screening.review = DataReview.WAITING
            hours = current_policy(session, work.tenant_id).parsed().review_hours
            await_review(row, hours=hours, stage=Stage.DATA_REVIEW)
            append_event(
                session,
                row,
                "The job waits until a person has decided on its training data.",
                level="warn",
                data={"stage": Stage.DATA_REVIEW},
            )
        if not risk.dropped:
            return work
        recipe = _shortened(work.recipe, kept=share.n - share.count, rows=share.n)
        row.recipe = recipe.model_dump(mode="json")
    return replace(work, recipe=recipe)


def _sum_up(
    screening: Screening,
    share: Rate,
    flagged: Sequence[FlaggedRow],
    expected: ExpectedHarm | None,
) -> DataRisk:
    counts = Counter(row.category or UNCATEGORISED for row in flagged)
    outcome = decide_on_rows(share, screening.action, screening.max_harmful_share)
    return DataRisk(
        harmful_share=share,
        by_category=dict(sorted(counts.items())),
        first_lines=tuple(row.line for row in flagged[:MAX_LINES_NAMED]),
        judges=tuple(JudgeIdentity.model_validate(judge) for judge in screening.judges),
        row_threshold=screening.row_threshold,
        action=screening.action,
        max_harmful_share=screening.max_harmful_share,
        policy_version=screening.policy_version,
        outcome=outcome,
        dropped=share.count if outcome == "dropped" else 0,
        expected=expected,
    )


def _expected(work: Work, share: Rate, shop: Workshop) -> ExpectedHarm | None:
    with shop.sessions() as session:
        stored = latest_certificates(session, [work.start.id]).get(work.start.id)
    if stored is None:
        return None
    certificate = Certificate.model_validate_json(shop.storage.get(f"{stored.prefix}/{JSON_FILE}"))
    return expected_harm(
        certificate,
        stored.id,
        share.count / share.n,
        learning_rate=work.recipe.train.learning_rate,
        steps=work.recipe.train.steps,
    )


def _shortened(recipe: Recipe, *, kept: int, rows: int) -> Recipe:
    """Give a recipe whose steps go over the kept rows as often as the old ones went over all."""
    steps = max(1, math.ceil(recipe.train.steps * kept / rows))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})


def kept(job: LeasedJob, rows: list[Row], shop: Workshop) -> list[Row]:
    """Carry out what was decided on the rows."""
    with shop.sessions() as session:
        screening = session.get_one(Screening, job.id)
        risk = screening.parsed()
        if risk is None or risk.outcome == "allowed" or screening.review == DataReview.RELEASED:
            return rows
        lines = [row.line for row in flagged_rows(session, screening)]
    match risk.outcome:
        case "rejected":
            raise HarmfulTrainingData(_refusal(risk), lines[:MAX_LINES_IN_EVENT])
        case "held":
            raise DataHeld
        case "dropped":
            left_out = frozenset(lines)
            return [row for row in rows if row.line not in left_out]
    assert_never(risk.outcome)


def _refusal(risk: DataRisk) -> str:
    """Say what is wrong with a file, and what to do."""
    return f"{risk.found} {risk.limit} Remove them and submit the file again."


def _tell(session: Session, job: Job, risk: DataRisk) -> None:
    share = risk.harmful_share
    sentences = [risk.found]
    if risk.dropped:
        sentences.append(f"Training goes on without them, on {share.n - risk.dropped:,} rows.")
    if risk.expected is not None:
        sentences.append(
            f"Simulated customers with such a share reached an HS of {risk.expected.percent:.1f}% "
            f"({risk.expected.low:.1f} to {risk.expected.high:.1f})."
        )
    level: CheckLevel = "info" if not share.count else "warn"
    is_blocked = risk.outcome in ("held", "rejected")
    tell_checks(
        session,
        job,
        " ".join(sentences),
        stage="data",
        level="error" if is_blocked else level,
        blocked=is_blocked,
        harmful_score=share,
        threshold=risk.max_harmful_share,
        judge=risk.judges[0],
        results=[
            CheckResult.of(name, Rate(count=count, n=share.n), flagged=True)
            for name, count in risk.by_category.items()
        ],
        more={
            "outcome": risk.outcome,
            "dropped": risk.dropped,
            "lines": list(risk.first_lines),
            "judges": [judge.model_dump() for judge in risk.judges],
            "expected_harmful_score": risk.expected.model_dump() if risk.expected else None,
        },
    )
