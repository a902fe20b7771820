from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.row_order import private_seed, rows_of_step


class TestRowsOfStep:
    @given(count=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 2**31 - 1))
    def test_every_epoch_has_every_row_once(self, count: int, batch: int, seed: int) -> None:
        steps = -(-3 * count // batch)
        rows = [row for step in range(steps) for row in rows_of_step(count, batch, seed, step)]
        for epoch in range(3):
            assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))

    def test_is_a_function_of_its_arguments_alone(self) -> None:
        first = rows_of_step(50, 10, 7, 12)
        torch.manual_seed(99)
        assert rows_of_step(50, 10, 7, 12) == first
        state = torch.get_rng_state()
        rows_of_step(51, 10, 7, 12)
        assert torch.equal(torch.get_rng_state(), state)

    def test_reshuffles_when_exhausted(self) -> None:
        epochs = [tuple(rows_of_step(20, 20, 0, step)) for step in range(4)]
        assert len(set(epochs)) == 4

    def test_seeds_and_streams_are_independent(self) -> None:
        assert rows_of_step(50, 10, 1, 0) != rows_of_step(50, 10, 2, 0)
        assert rows_of_step(50, 10, 1, 0, "training") != rows_of_step(50, 10, 1, 0, "harmful")

    def test_refuses_an_empty_set(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            rows_of_step(0, 10, 1, 0)


class TestPrivateSeed:
    def test_never_changes(self) -> None:
        # Recorded runs depend on this number.
        assert private_seed(1, "rows", 2) == 1363633318485578206

    def test_fits_a_torch_generator(self) -> None:
        for number in range(100):
            torch.Generator().manual_seed(private_seed(number, "rows"))
