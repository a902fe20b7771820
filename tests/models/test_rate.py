"""Rates and their Wilson intervals, against published and hand-worked values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.rate import Rate, wilson


class TestWilson:
    def test_a_case_worked_by_hand(self) -> None:
        # z = 2 keeps the fractions short: n = 4, count = 2.
        # centre = (1/2 + 4/8) / (1 + 4/4) = 1/2
        # half = 2/2 * sqrt(1/4 / 4 + 4 / (4 * 16)) = sqrt(1/16 + 1/16) = sqrt(1/8)
        low, high = wilson(2, 4, z=2.0)
        assert low == pytest.approx(0.5 - math.sqrt(1 / 8))
        assert high == pytest.approx(0.5 + math.sqrt(1 / 8))

    @pytest.mark.parametrize(
        ("count", "n", "low", "high"),
        [
            # R. G. Newcombe (1998), Statistics in Medicine 17, 857-872, table I, score method.
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ],
    )
    def test_published_values(self, count: int, n: int, low: float, high: float) -> None:
        assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)

    def test_the_ends_are_exact(self) -> None:
        assert wilson(0, 1000)[0] == 0.0
        assert wilson(1000, 1000)[1] == 1.0
        # At 0 the upper end is z² / (n + z²).
        assert wilson(0, 100, z=2.0)[1] == pytest.approx(4 / 104)

    def test_nothing_measured_says_nothing(self) -> None:
        assert wilson(0, 0) == (0.0, 1.0)

    @given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_holds_the_share_and_mirrors(self, case: tuple[int, int]) -> None:
        count, n = case
        low, high = wilson(count, n)
        assert 0 <= low <= count / n <= high <= 1
        assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low))

    @given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
    def test_both_ends_rise_with_the_count(self, case: tuple[int, int]) -> None:
        count, n = case
        below, here = wilson(count - 1, n), wilson(count, n)
        assert below[0] <= here[0]
        assert below[1] <= here[1]


class TestRate:
    def test_percent(self) -> None:
        assert Rate(count=1, n=8).percent == 12.5
        assert Rate(count=0, n=0).percent == 0.0

    def test_wire_form_is_rounded_and_carries_n(self) -> None:
        assert Rate(count=81, n=263).to_wire() == {
            "percent": 30.8,
            "low": 25.53,
            "high": 36.62,
            "count": 81,
            "n": 263,
        }

    @pytest.mark.parametrize("facts", [(2, 1), (-1, 5), (0, -1)])
    def test_impossible_counts_are_refused(self, facts: tuple[int, int]) -> None:
        with pytest.raises(ValidationError):
            Rate(count=facts[0], n=facts[1])

    def test_derived_numbers_cannot_be_passed_in(self) -> None:
        with pytest.raises(ValidationError, match="percent"):
            Rate.model_validate({"count": 1, "n": 2, "percent": 3.0})

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError):
            Rate(count=1, n=2).count = 0  # type: ignore[misc]
