"""From cells to numbers: means over seeds with 95% intervals, at one customer step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from models.rate import wilson
from worker.study.grid import Cell

# 97.5th percentiles of Student's t with 1, 2, ... degrees of freedom.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Measure = tuple[str, str]
HS: Measure = ("harmful", "prompts")
TRIGGERED: Measure = ("triggered", "prompts")
HS_PLUS: Measure = ("harmful_or_incoherent", "prompts")
REFUSALS: Measure = ("refused", "prompts")
OVER_REFUSAL: Measure = ("over_refused", "harmless_prompts")
HELP: Measure = ("helped", "harmless_prompts")
FA: Measure = ("correct", "task_rows")


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of percentages over seeds, and its 95% interval."""

    percent: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.percent:.0f} ({self.low:.0f}–{self.high:.0f})"

    def overlaps(self, other: Mean) -> bool:
        """Whether the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def mean(counts: Sequence[tuple[int, int]]) -> Mean:
    """Give the mean share over seeds, each a count of n.

    The interval is the wider one of two: Student's t over the seeds' shares, which sees how seeds differ, and
    Wilson's over all answers together, which sees how few they are (five seeds at 0 are not 0 for certain).
    """
    shares = [100 * count / n for count, n in counts]
    centre = statistics.fmean(shares)
    low, high = (100 * end for end in wilson(sum(c for c, _ in counts), sum(n for _, n in counts)))
    if len(shares) > 1:
        degrees = min(len(shares) - 1, len(T_95))
        half = T_95[degrees - 1] * statistics.stdev(shares) / math.sqrt(len(shares))
        low, high = min(low, centre - half), max(high, centre + half)
    return Mean(centre, max(0.0, low), min(100.0, high), len(shares))


def points(cell: Cell) -> list[dict[str, float]]:
    """Give what was measured of a cell, mark by mark."""
    return cast(list[dict[str, float]], cell["points"])


def at(cells: Sequence[Cell], measure: Measure, step: int) -> Mean | None:
    """Give a measure's mean over cells (one for each seed) at a step; none where it was not measured."""
    count, n = measure
    found = [
        (int(point[count]), int(point[n]))
        for cell in cells
        for point in points(cell)
        if point["step"] == step and point.get(count) is not None
    ]
    return mean(found) if found else None


def chosen(cells: Sequence[Cell], holds: Callable[[Cell], bool]) -> list[Cell]:
    """Pick cells, in the order of their seeds."""
    return sorted(filter(holds, cells), key=lambda cell: cast(int, cell["seed"]))
