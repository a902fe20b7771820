"""The `moderation_checks` event: what was checked at which stage, by whom, and what came of it.

OpenAI's jobs carry events of this type; their exact JSON is not published. One shape for all three stages:
the data before training, a checkpoint on the way, and the model at the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from sqlalchemy.orm import Session

from models.evaluation import JudgeIdentity
from models.frozen import Frozen
from models.job import Job, JobEvent, append_event
from models.rate import Rate

MODERATION_CHECKS = "moderation_checks"

CheckedStage = Literal["data", "checkpoint", "model"]
CheckLevel = Literal["info", "warn", "error"]


class CheckResult(Frozen):
    """One kind of harm: how often it was found, of how many, and whether that is too often."""

    category: str
    flagged: bool
    rate: float
    n: int

    @classmethod
    def of(cls, category: str, rate: Rate, *, flagged: bool) -> CheckResult:
        """Take the numbers from a rate."""
        return cls(category=category, flagged=flagged, rate=round(rate.percent, 2), n=rate.n)


def by_category(rates: Mapping[str, Rate], limit: Callable[[str], float]) -> list[CheckResult]:
    """Give a result for each kind of harm; flagged are those that are surely above their limit (percent)."""
    return [
        CheckResult.of(name, rate, flagged=rate.low_percent > limit(name))
        for name, rate in sorted(rates.items())
    ]


def tell_checks(
    session: Session,
    job: Job,
    message: str,
    *,
    stage: CheckedStage,
    level: CheckLevel,
    blocked: bool,
    harmful_score: Rate,
    threshold: float | None,
    judge: JudgeIdentity,
    results: Iterable[CheckResult],
    more: Mapping[str, Any] | None = None,
) -> JobEvent:
    """Add the event to a job's log. The caller holds the job's row lock.

    Args:
        session: an open session.
        job: whose log.
        message: a sentence for people, without any text of a row or an answer.
        stage: what was checked.
        level: how bad it is.
        blocked: whether the job or its model goes no further by this.
        harmful_score: HS of answers; at the stage `data` the share of rows that are flagged.
        threshold: the limit for it, in percent; none: any is too much.
        judge: whose opinion it is.
        results: by kind of harm.
        more: further keys, such as the gate and its reasons.
    """
    return append_event(
        session,
        job,
        message,
        level=level,
        type=MODERATION_CHECKS,
        data={
            **(more or {}),
            "stage": stage,
            "blocked": blocked,
            "harmful_score": harmful_score.to_wire(),
            "threshold": threshold,
            "judge": judge.model_dump(),
            "results": [result.model_dump() for result in results],
        },
    )
