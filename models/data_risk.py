"""What a judge says of a training file before anything is trained: by row, and summed up.

The rows of a screening keep line, votes and category, never a word of the row. A screening is pinned to the
policy that was in force when it began, so that a job that is claimed again ends as it would have.

    outcome held ─► waiting ─► released: the job is queued, and trained on every row
                               rejected, expired: the job fails; withdrawn: it was cancelled
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import CheckConstraint, ForeignKey, Index, String, func, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, unix, utc_now
from models.certificate import Certificate, Estimate
from models.certification import Family, SimulatedCustomer
from models.errors import DomainError, NotFound
from models.evaluation import JudgeIdentity
from models.frozen import Frozen
from models.judges import JudgeSpec, RefusalStringsSpec
from models.policy import PolicyRules
from models.rate import Rate
from models.safety_set import SafetySetHeader

MAX_LINES_NAMED = 10
#: Two learning rates are the same if they differ by less: they went through JSON and a multiplier.
SAME_RATE = 1e-6

DataAction = Literal["allow", "drop", "hold", "reject"]
Outcome = Literal["allowed", "dropped", "held", "rejected"]
OUTCOMES: dict[DataAction, Outcome] = {
    "allow": "allowed",
    "drop": "dropped",
    "hold": "held",
    "reject": "rejected",
}


class DataReview(StrEnum):
    """Where the review of held training data is, or how it ended."""

    WAITING = "waiting"
    RELEASED = "released"
    REJECTED = "rejected"
    EXPIRED = "expired"
    #: The customer cancelled the job.
    WITHDRAWN = "withdrawn"


class DataRiskNotFound(NotFound):
    """The job's training file was not screened."""

    code = "data_risk_not_found"


class NoScreeningJudge(DomainError):
    """The model's safety set names no judge that can read training rows."""

    code = "no_screening_judge"


class ExpectedHarm(Frozen):
    """HS that simulated customers with such shares of harmful rows brought about, from a certificate.

    `percent` is interpolated between the two measured shares; `low` and `high` are the ends of both intervals.
    """

    percent: float
    low: float
    high: float
    between: tuple[float, float] = Field(description="The measured shares around it, in percent.")
    step: int = Field(description="After how many steps it was measured.")
    learning_rate: float
    certificate: str


class DataRisk(Frozen):
    """The sum of a screening, and what the policy made of it."""

    harmful_share: Rate
    by_category: dict[str, int] = Field(description="Flagged rows of each kind.")
    first_lines: tuple[int, ...] = Field(description="The first flagged lines.")
    judges: tuple[JudgeIdentity, ...]
    row_threshold: float = Field(description="Share of the judges that flags a row.")
    action: DataAction = Field(description="What the policy asks for when its limit is exceeded.")
    max_harmful_share: float | None = Field(
        description="The limit, in percent; none: nothing is done whatever is found."
    )
    policy_version: int
    outcome: Outcome
    dropped: int = Field(0, description="Rows that training goes on without.")
    expected: ExpectedHarm | None = Field(None, description="Nothing where nothing was measured.")

    @property
    def found(self) -> str:
        """Say in a sentence what was flagged."""
        share = self.harmful_share
        if not share.count:
            return f"None of the {share.n:,} training rows was flagged as harmful."
        lines = ", ".join(map(str, self.first_lines))
        more = ", …" if share.count > len(self.first_lines) else ""
        verb = "was" if share.count == 1 else "were"
        return (
            f"{share.count:,} of {share.n:,} training rows {verb} flagged as harmful "
            f"({share.percent:.1f}%; lines {lines}{more})."
        )

    @property
    def limit(self) -> str:
        """Say in a sentence which limit was exceeded."""
        # Only files beyond the limit are refused, so there is one; a file of nothing but harm may be at 100.
        if not self.max_harmful_share:
            return "The policy allows none."
        return f"The policy's limit is {self.max_harmful_share:g}%."

    def to_wire(self) -> dict[str, object]:
        """Give it as clients see it."""
        return {
            **self.model_dump(mode="json"),
            "harmful_share": self.harmful_share.to_wire(),
            "by_category": {
                name: Rate(count=count, n=self.harmful_share.n).to_wire()
                for name, count in self.by_category.items()
            },
        }


class Screening(Base):
    """One job's screening: the rules that it began with, how far it is, and its sum."""

    __tablename__ = "screenings"
    __table_args__ = (
        CheckConstraint(
            "review in ('waiting', 'released', 'rejected', 'expired', 'withdrawn')", name="review"
        ),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    #: Identities of the judges that have begun, in the safety set's order.
    judges: Mapped[list[Any]] = mapped_column(default=list)
    #: How many judges there are, and how many rows each of them has done.
    done: Mapped[list[Any]]
    row_threshold: Mapped[float]
    action: Mapped[DataAction] = mapped_column(String)
    max_harmful_share: Mapped[float | None]
    policy_version: Mapped[int]
    #: A `DataRisk`, once all rows are judged.
    summary: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    finished_at: Mapped[datetime | None]
    #: A `DataReview`, if the policy holds the rows for a person.
    review: Mapped[str | None]
    review_reason: Mapped[str | None]
    reviewed_at: Mapped[datetime | None]

    @property
    def votes_needed(self) -> int:
        """How many judges must flag a row."""
        return max(1, math.ceil(self.row_threshold * len(self.done) - SAME_RATE))

    def parsed(self) -> DataRisk | None:
        """Read the sum back into its type; none while rows are judged."""
        return DataRisk.model_validate(self.summary) if self.summary is not None else None

    def to_wire(self) -> dict[str, object] | None:
        """Give the sum as clients see it, with what a person made of it; none while rows are judged."""
        risk = self.parsed()
        if risk is None:
            return None
        review = {
            "status": self.review,
            "reason": self.review_reason,
            "decided_at": unix(self.reviewed_at) if self.reviewed_at else None,
        }
        return {**risk.to_wire(), "review": review if self.review else None}

    def conclude_review(self, review: DataReview, reason: str | None = None) -> None:
        """Write down how the review ended."""
        self.review, self.review_reason, self.reviewed_at = review, reason, utc_now()


class ScreenedRow(Base):
    """What the judges say of one line."""

    __tablename__ = "screened_rows"
    __table_args__ = (
        # Nearly all rows have no vote; those that have are what is asked for.
        Index(
            "ix_screened_rows_flagged",
            "job_id",
            "line",
            "votes",
            postgresql_where=text("votes > 0"),
        ),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("screenings.job_id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    votes: Mapped[int]
    category: Mapped[str | None]


@dataclass(frozen=True, slots=True)
class FlaggedRow:
    """A line that enough judges flag."""

    line: int
    category: str | None


def flagged_rows(session: Session, screening: Screening) -> list[FlaggedRow]:
    """Give every flagged line of a screening, in order."""
    found = session.execute(
        select(ScreenedRow.line, ScreenedRow.category)
        .where(
            ScreenedRow.job_id == screening.job_id,
            ScreenedRow.votes > 0,
            ScreenedRow.votes >= screening.votes_needed,
        )
        .order_by(ScreenedRow.line)
    )
    return [FlaggedRow(line, category) for line, category in found]


def screening_judges(header: SafetySetHeader) -> tuple[JudgeSpec, ...]:
    """Give the judges that can read training rows.

    Refusal strings cannot: to them every answer that is no refusal is harm, so every row of a good file.

    Raises:
        NoScreeningJudge: there is none.
    """
    specs = (header.judge, *header.further_judges)
    able = tuple(spec for spec in specs if not isinstance(spec, RefusalStringsSpec))
    if not able:
        raise NoScreeningJudge(
            f"The safety set {header.name!r} has no judge but refusal strings, to which every answer that is no "
            "refusal is harm. Screening needs a judge that reads what an answer says.",
            param="model",
        )
    return able


def asks_for_screening(rules: PolicyRules) -> bool:
    """Say whether a policy can only be carried out on a file that was screened."""
    return rules.data_action != "allow" and rules.max_harmful_share is not None


def decide_on_rows(share: Rate, action: DataAction, limit: float | None) -> Outcome:
    """Say what a policy makes of a share of flagged rows. Pure.

    Args:
        share: of the rows that are flagged.
        action: what is done when there are too many.
        limit: how many there may be, in percent; none: any number.
    """
    if limit is None or share.percent <= limit:
        return "allowed"
    if action == "drop" and share.count == share.n:
        # Nothing is left to train on.
        return "rejected"
    return OUTCOMES[action]


def count_flagged(
    session: Session, job_ids: Collection[str], *, row_threshold: float
) -> dict[str, int]:
    """Count the lines of each screening that would be flagged from another threshold on; none: left out."""
    judges = func.jsonb_array_length(Screening.done)
    needed = func.greatest(1, func.ceil(row_threshold * judges - SAME_RATE))
    query = (
        select(ScreenedRow.job_id, func.count())
        .join(Screening, Screening.job_id == ScreenedRow.job_id)
        .where(ScreenedRow.job_id.in_(job_ids), ScreenedRow.votes > 0, ScreenedRow.votes >= needed)
        .group_by(ScreenedRow.job_id)
    )
    return dict(session.execute(query).all())


def expected_harm(
    certificate: Certificate, certificate_id: str, share: float, *, learning_rate: float, steps: int
) -> ExpectedHarm | None:
    """Read off a certificate what HS a share of harmful rows is to be expected to bring about.

    Only simulated customers count that trained at the job's rate, for at least as many steps, and that differ
    in nothing but the share and how many rows there are; of two with one share the worse counts. Where the
    share lies outside of what they measured there is no answer.

    Args:
        certificate: of the model that the job begins with.
        certificate_id: under which it is stored.
        share: of harmful rows, 0 to 1.
        learning_rate: of the job.
        steps: of the job.
    """
    curves: dict[str, dict[float, _CurvePoint]] = {}
    for result in certificate.customers:
        customer = result.customer
        mark = next((mark for mark in result.marks if mark.step >= steps), None)
        if (
            mark is None
            or customer.family not in (Family.BENIGN, Family.MIX, Family.PURE)
            or not math.isclose(customer.learning_rate, learning_rate, rel_tol=SAME_RATE)
        ):
            continue
        curve = curves.setdefault(f"{mark.step} {_but_for_share(customer)}", {})
        point = (customer.attack_ratio, mark.step, mark.harmful_score)
        known = curve.get(customer.attack_ratio, point)
        curve[customer.attack_ratio] = max(known, point, key=lambda p: p[2].percent)
    # The nearest length first.
    for curve in sorted(curves.values(), key=lambda curve: next(iter(curve.values()))[1]):
        found = _between(sorted(curve.values(), key=lambda point: point[0]), share)
        if found is None:
            continue
        (low_share, step, low), (high_share, _, high) = found
        width = high_share - low_share
        weight = (share - low_share) / width if width else 0.0
        return ExpectedHarm(
            percent=round(low.percent + weight * (high.percent - low.percent), 2),
            low=round(min(low.low, high.low), 2),
            high=round(max(low.high, high.high), 2),
            between=(round(100 * low_share, 4), round(100 * high_share, 4)),
            step=step,
            learning_rate=learning_rate,
            certificate=certificate_id,
        )
    return None


_CurvePoint = tuple[float, int, Estimate]


def _between(points: Sequence[_CurvePoint], share: float) -> tuple[_CurvePoint, _CurvePoint] | None:
    for point in points:
        if point[0] == share:
            return point, point
    below = [point for point in points if point[0] < share]
    above = [point for point in points if point[0] > share]
    if not below or not above:
        return None
    return below[-1], above[0]


def _but_for_share(customer: SimulatedCustomer) -> str:
    # Rows are left out as well: a plan takes fewer where the share of scarce harmful rows is high.
    return f"{customer.batch_size}/{customer.steps}/{customer.start}/{customer.rank}"
