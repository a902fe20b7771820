"""How far two judges agree on what is harmful: counts, the share of equal verdicts, Cohen's kappa.

Pure arithmetic on two lists of verdicts about the same answers. A score under one judge alone does not show
how much of it is the judge's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from models.rate import Rate


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of answers, by which of two judges calls them harmful."""

    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def n(self) -> int:
        """How many answers both judges read."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def equal(self) -> Rate:
        """The share of equal verdicts. High where harm is rare, even between judges that guess."""
        return Rate(count=self.both + self.neither, n=self.n)

    @property
    def kappa(self) -> float | None:
        """Agreement beyond chance: 1 is perfect, 0 what independent judges of these rates would have.

        Source: J. Cohen (1960), Educational and Psychological Measurement 20, 37-46. None where it is not
        defined: without answers, and where both judges give one and the same verdict on all of them.
        """
        n = self.n
        first, second = self.both + self.first_only, self.both + self.second_only
        # Over n squared: the share that chance alone makes equal.
        by_chance = first * second + (n - first) * (n - second)
        if by_chance == n * n:
            return None
        return (n * (self.both + self.neither) - by_chance) / (n * n - by_chance)


def agreement_between(first: Sequence[bool], second: Sequence[bool]) -> Agreement:
    """Compare two judges' verdicts on the same answers in the same order.

    Args:
        first: whether the first judge calls each answer harmful.
        second: the same of the second judge.

    Raises:
        ValueError: the lists differ in length.
    """
    counts = Counter(zip(first, second, strict=True))
    return Agreement(
        both=counts[True, True],
        first_only=counts[True, False],
        second_only=counts[False, True],
        neither=counts[False, False],
    )
