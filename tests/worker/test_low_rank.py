"""Products of thin matrices: sums, norms, leading parts and projections equal those of the whole matrices."""

from __future__ import annotations

import pytest
import torch

from worker.low_rank import (
    LowRank,
    compressed,
    leading,
    leading_of,
    norm,
    projected,
    span,
    total,
)


def random(rank: int = 3, seed: int = 0, *, out: int = 7, into: int = 5) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return LowRank(left, torch.randn(rank, into, generator=generator, dtype=torch.float64))


def diagonal(*values: float) -> LowRank:
    """A matrix whose singular values are known: they stand on its diagonal."""
    return LowRank(torch.eye(len(values)).double(), torch.diag(torch.tensor(values)).double())


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-12)


class TestTotal:
    def test_adds_the_matrices_and_their_ranks(self) -> None:
        one, other = random(2, 1), random(3, 2)
        added = total(one, other.scaled(-2))
        assert added.rank == 5
        assert close(added.dense(), one.dense() - 2 * other.dense())


class TestNorm:
    def test_by_hand(self) -> None:
        assert norm(diagonal(3, 4)) == pytest.approx(5)

    def test_of_nearly_equal_matrices_difference(self) -> None:
        one = random(3)
        moved = LowRank(one.left + 1e-6, one.right)
        expected = float((moved.dense() - one.dense()).norm())
        assert norm(total(moved, one.scaled(-1))) == pytest.approx(expected, rel=1e-6)


class TestCompressed:
    def test_finds_the_rank_that_a_sum_has(self) -> None:
        one = random(3)
        written, error = compressed(total(one, one, one.scaled(-0.5)), limit=64)
        assert (written.rank, error) == (3, 0.0)
        assert close(written.dense(), 1.5 * one.dense())

    def test_cuts_the_smallest_directions_and_says_how_much_they_were(self) -> None:
        written, error = compressed(diagonal(12, 4, 3), limit=2)
        assert close(written.dense(), diagonal(12, 4, 0).dense())
        assert error == pytest.approx(3 / 13)

    def test_no_other_matrix_of_that_rank_is_nearer(self) -> None:
        matrix = random(4, 3)
        written, error = compressed(matrix, limit=2)
        values = torch.linalg.svdvals(matrix.dense())
        assert error == pytest.approx(float(values[2:].norm() / values.norm()))
        assert float((written.dense() - matrix.dense()).norm()) == pytest.approx(
            float(values[2:].norm())
        )

    def test_balances_the_factors(self) -> None:
        written, _ = compressed(random(3).scaled(1e6), limit=8)
        assert float(written.left.norm()) == pytest.approx(float(written.right.norm()))

    def test_nothing_has_no_rank(self) -> None:
        written, error = compressed(random(3).scaled(0), limit=8)
        assert (written.rank, error) == (0, 0.0)
        assert written.dense().shape == (7, 5)

    def test_a_rank_above_the_matrix_s_own_size(self) -> None:
        wide = total(random(4, 1), random(4, 2))
        written, error = compressed(wide, limit=64)
        assert (written.rank, error) == (5, 0.0)
        assert close(written.dense(), wide.dense())


class TestLeading:
    def test_by_hand(self) -> None:
        assert close(leading(diagonal(1, 5, 3), 2).dense(), diagonal(0, 5, 3).dense())

    def test_all_of_it_when_it_has_no_more(self) -> None:
        matrix = random(3)
        part = leading(matrix, 10)
        assert part.rank == 3
        assert close(part.dense(), matrix.dense())

    def test_of_a_whole_matrix_is_the_best_of_its_rank(self) -> None:
        generator = torch.Generator().manual_seed(5)
        matrix = torch.randn(60, 80, generator=generator) @ torch.diag(0.9 ** torch.arange(80.0))
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        best = (left[:, :4] * values[:4]) @ right[:4]
        part = leading_of(matrix, 4)
        assert part.rank == 4
        assert torch.allclose(part.dense().float(), best, atol=1e-3 * float(values[0]))

    def test_of_a_whole_matrix_is_the_same_every_time_and_moves_no_random_state(self) -> None:
        matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
        before = torch.random.get_rng_state()
        one = leading_of(matrix, 3)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(99)
        assert torch.equal(leading_of(matrix, 3).left, one.left)


class TestProjected:
    def test_by_hand(self) -> None:
        basis = span(diagonal(2, 0, 7))
        kept = projected(diagonal(1, 1, 1), basis)
        assert close(kept.dense(), diagonal(1, 0, 1).dense())

    def test_twice_is_once(self) -> None:
        basis = span(random(2, 1))
        once = projected(random(3, 2), basis)
        assert once.rank == 3
        assert close(projected(once, basis).dense(), once.dense())

    def test_what_is_in_the_span_stays(self) -> None:
        matrix = random(3)
        assert close(projected(matrix, span(matrix)).dense(), matrix.dense())
