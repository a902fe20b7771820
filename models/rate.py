"""A measured share with its uncertainty: how many of how many, and the 95% Wilson interval.

Pure arithmetic. Every score that Titer shows is a `Rate`, so that no percentage stands without its n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# The 97.5th percentile of the standard normal distribution: a two-sided interval of 95%.
Z_95 = 1.959963984540054


def wilson(count: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Give the Wilson score interval for `count` successes in `n` trials, as shares in [0, 1].

    Source: E. B. Wilson (1927), Journal of the American Statistical Association 22, 209-212. It stays
    inside [0, 1] and keeps its width at 0 and n, where the usual normal interval collapses to a point.
    """
    if n <= 0:
        return 0.0, 1.0
    share = count / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one rate is above another, in percentage points, with a 95% interval."""

    points: float
    low: float
    high: float

    def to_wire(self) -> dict[str, float]:
        """Give the numbers that clients see, rounded to a hundredth of a point."""
        return {
            "points": round(self.points, 2),
            "low": round(self.low, 2),
            "high": round(self.high, 2),
        }


class Rate(BaseModel):
    """`count` of `n`; `percent`, `low_percent` and `high_percent` follow from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    count: int = Field(ge=0)
    n: int = Field(ge=0)

    @model_validator(mode="after")
    def _count_fits(self) -> Self:
        if self.count > self.n:
            raise ValueError("count exceeds n")
        return self

    @property
    def percent(self) -> float:
        """The share in percent; 0 when nothing was measured (look at `n`)."""
        return 100.0 * self.count / self.n if self.n else 0.0

    @property
    def low_percent(self) -> float:
        """Lower end of the 95% Wilson interval, in percent."""
        return 100.0 * wilson(self.count, self.n)[0]

    @property
    def high_percent(self) -> float:
        """Upper end of the 95% Wilson interval, in percent."""
        return 100.0 * wilson(self.count, self.n)[1]

    def to_wire(self) -> dict[str, float | int]:
        """Give the numbers that clients see, rounded to a hundredth of a point."""
        return {
            "percent": round(self.percent, 2),
            "low": round(self.low_percent, 2),
            "high": round(self.high_percent, 2),
            "count": self.count,
            "n": self.n,
        }


def difference(one: Rate, other: Rate) -> Difference:
    """Tell how far `one` is above `other`.

    Source: R. G. Newcombe (1998), Statistics in Medicine 17, 873-890, method 10, from both Wilson intervals.
    It takes the two for independent; of the same prompts asked twice the true interval is narrower, if anything.
    """
    points = one.percent - other.percent
    below = math.hypot(one.percent - one.low_percent, other.high_percent - other.percent)
    above = math.hypot(one.high_percent - one.percent, other.percent - other.low_percent)
    return Difference(points, points - below, points + above)
