"""Means over seeds: the arithmetic, and which of the two intervals is the wider."""

from __future__ import annotations

import math

import pytest

from models.rate import wilson
from worker.study.grid import Cell
from worker.study.summary import FA, HS, at, chosen, mean


def cell(seed: int, *shares: tuple[int, int], arm: str = "SFT") -> Cell:
    return {
        "arm": arm,
        "seed": seed,
        "points": [
            {"step": step, "harmful": harmful, "prompts": 200, "correct": 9, "task_rows": 10}
            for step, harmful in shares
        ],
    }


class TestMean:
    def test_students_t_where_seeds_differ(self) -> None:
        found = mean([(0, 100), (50, 100), (100, 100)])
        # Mean 50, standard deviation 50, t(2) = 4.303: half-width 124, clamped to what a share can be.
        assert (found.percent, found.low, found.high, found.seeds) == (50, 0, 100, 3)
        found = mean([(48, 100), (50, 100), (52, 100)])
        half = 4.303 * 2 / math.sqrt(3)
        low, high = (100 * end for end in wilson(150, 300))
        assert (found.low, found.high) == pytest.approx((min(50 - half, low), max(50 + half, high)))

    def test_wilson_where_seeds_agree(self) -> None:
        found = mean([(0, 200)] * 5)
        assert (found.percent, found.low) == (0, 0)
        assert found.high == pytest.approx(100 * wilson(0, 1000)[1])
        assert found.high > 0

    def test_one_seed_has_an_interval_too(self) -> None:
        assert mean([(20, 200)]).high == pytest.approx(100 * wilson(20, 200)[1])

    def test_overlap(self) -> None:
        low, high = mean([(0, 200)] * 3), mean([(200, 200)] * 3)
        assert not low.overlaps(high)
        assert low.overlaps(low)


class TestAt:
    CELLS = (cell(2, (0, 0), (60, 20)), cell(1, (0, 0), (60, 60)))

    def test_reads_one_step_of_every_seed(self) -> None:
        found = at(self.CELLS, HS, 60)
        assert found is not None
        assert (found.percent, found.seeds) == (20, 2)
        accuracy = at(self.CELLS, FA, 0)
        assert accuracy is not None
        assert accuracy.percent == 90

    def test_what_was_not_measured_is_none(self) -> None:
        assert at(self.CELLS, HS, 61) is None
        assert at((), HS, 0) is None

    def test_cells_come_in_the_order_of_their_seeds(self) -> None:
        assert [c["seed"] for c in chosen(self.CELLS, lambda c: c["arm"] == "SFT")] == [1, 2]
