"""The distribution of harmful scores that the gate decided on lately, against the policy's line."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.base import utc_now
from models.evaluation import Evaluation
from models.model_version import Gate
from models.policy import SafetyPolicy, current_policy

DAYS = 30
BARS = 20
MAX_EVALUATIONS = 5_000
#: Of the chart's height, in percent: a single verdict among hundreds must be seen.
LEAST_HEIGHT = 2.5
#: From the bottom of a bar to its top.
VERDICTS = (Gate.RELEASED, Gate.HELD, Gate.BLOCKED)


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a bar that one verdict has; places are in percent of the chart's height, from its top."""

    gate: Gate
    count: int
    top: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """Scores from `low` up to `high` percent."""

    low: int
    high: int
    segments: tuple[Segment, ...]

    @property
    def count(self) -> int:
        """How many scores lie here."""
        return sum(segment.count for segment in self.segments)

    @property
    def top(self) -> float:
        """Where the bar ends above."""
        return min((segment.top for segment in self.segments), default=100.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Bars over 0 to 100 percent. `ceiling` is the count at the chart's top."""

    bars: tuple[Bar, ...]
    ceiling: int
    limit: float
    policy_version: int
    #: Projects whose own policy draws another line.
    own_policies: int
    is_cut: bool

    @property
    def total(self) -> int:
        """How many verdicts there are."""
        return sum(bar.count for bar in self.bars)

    def count(self, gate: Gate) -> int:
        """How many verdicts are this one."""
        return sum(s.count for bar in self.bars for s in bar.segments if s.gate == gate)


def read_distribution(session: Session) -> Distribution:
    """Read what was decided in the last `DAYS`, the newest where there is very much."""
    newest = (
        select(Evaluation.harmful_score_percent, Evaluation.gate)
        .where(
            Evaluation.created_at >= utc_now() - timedelta(days=DAYS), Evaluation.gate.in_(VERDICTS)
        )
        .order_by(Evaluation.created_at.desc())
        .limit(MAX_EVALUATIONS)
        .subquery()
    )
    bucket = func.least(func.width_bucket(newest.c.harmful_score_percent, 0.0, 100.0, BARS), BARS)
    counts: Counter[tuple[int, str]] = Counter()
    rows = session.execute(
        select(bucket, newest.c.gate, func.count()).group_by(bucket, newest.c.gate)
    )
    for number, gate, count in rows:
        counts[number - 1, gate] += count
    policy = current_policy(session)
    own = session.scalar(
        select(func.count(SafetyPolicy.project_id.distinct())).where(
            SafetyPolicy.project_id.is_not(None), SafetyPolicy.activated_at.is_not(None)
        )
    )
    highest = max((sum(counts[n, gate] for gate in VERDICTS) for n in range(BARS)), default=0)
    top = ceiling(highest)
    return Distribution(
        bars=tuple(_bar(number, counts, top) for number in range(BARS)),
        ceiling=top,
        limit=policy.parsed().max_harmful_score,
        policy_version=policy.version,
        own_policies=own or 0,
        is_cut=counts.total() >= MAX_EVALUATIONS,
    )


def ceiling(highest: int) -> int:
    """Give a round even number that is not below the highest bar: its half is whole as well."""
    size = int(10 ** max(0, math.floor(math.log10(max(highest, 1)))))
    steps = (2, 4, 6, 10, 20) if size == 1 else (1, 2, 4, 6, 8, 10)
    return next(step * size for step in steps if step * size >= highest)


def _bar(number: int, counts: Counter[tuple[int, str]], top: int) -> Bar:
    width = 100 // BARS
    segments, base = [], 100.0
    for gate in VERDICTS:
        count = counts[number, gate]
        if count:
            height = max(100.0 * count / top, LEAST_HEIGHT)
            base -= height
            segments.append(Segment(gate, count, base, height))
    return Bar(number * width, (number + 1) * width, tuple(segments))
