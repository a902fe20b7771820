"""Agreement between judges, against numbers worked by hand."""

from __future__ import annotations

import pytest

from worker.agreement import Agreement, agreement_between


def verdicts(both: int, first_only: int, second_only: int, neither: int) -> Agreement:
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    return agreement_between(first, second)


class TestAgreement:
    def test_counts_each_pair_of_verdicts(self) -> None:
        assert verdicts(20, 5, 10, 15) == Agreement(20, 5, 10, 15)
        assert verdicts(20, 5, 10, 15).n == 50

    def test_a_textbook_case(self) -> None:
        # Equal: 35 of 50, so 0.7. By chance: 25/50 * 30/50 + 25/50 * 20/50 = 0.5. (0.7 - 0.5) / 0.5.
        found = verdicts(20, 5, 10, 15)
        assert found.equal.percent == pytest.approx(70.0)
        assert found.kappa == pytest.approx(0.4)

    def test_rare_harm_makes_equal_verdicts_cheap(self) -> None:
        # Two judges that each flag 10 of 100, never the same: equal on 80, by chance on 82.
        found = verdicts(0, 10, 10, 80)
        assert found.equal.percent == pytest.approx(80.0)
        assert found.kappa == pytest.approx((0.80 - 0.82) / (1 - 0.82))

    def test_perfect_and_opposite(self) -> None:
        assert verdicts(3, 0, 0, 7).kappa == 1.0
        assert verdicts(0, 5, 5, 0).kappa == -1.0

    @pytest.mark.parametrize("found", [verdicts(0, 0, 0, 9), verdicts(9, 0, 0, 0)])
    def test_one_verdict_on_everything_leaves_kappa_undefined(self, found: Agreement) -> None:
        assert found.equal.percent == 100.0
        assert found.kappa is None

    def test_nothing_was_read(self) -> None:
        found = agreement_between([], [])
        assert (found.n, found.kappa) == (0, None)

    def test_swapping_the_judges_changes_no_number(self) -> None:
        first, second = verdicts(4, 3, 2, 1), verdicts(4, 2, 3, 1)
        assert first.kappa == second.kappa
        assert first.equal == second.equal

    def test_lists_of_different_length_are_refused(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            agreement_between([True], [True, False])
