"""Batches: like lengths together, halves when memory runs out, results in the order of the rows."""

from __future__ import annotations

import pytest
import torch

from worker.judgement import JudgeError
from worker.judges.batching import in_batches

ROWS = ["aaa", "b", "cccc", "dd", "eeeee"]


class TestInBatches:
    @pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 99])
    def test_results_come_in_the_order_of_the_rows(self, batch_size: int) -> None:
        assert in_batches(ROWS, batch_size, lambda rows: [row * 2 for row in rows]) == [
            row * 2 for row in ROWS
        ]

    def test_no_rows(self) -> None:
        assert in_batches([], 4, lambda rows: rows) == []

    def test_neighbours_are_of_like_length_and_the_longest_come_first(self) -> None:
        seen: list[list[str]] = []
        in_batches(ROWS, 2, lambda rows: seen.append(rows) or rows)
        assert seen == [["eeeee", "cccc"], ["aaa", "dd"], ["b"]]

    @pytest.mark.parametrize(
        "error",
        [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    )
    def test_a_batch_without_memory_is_halved_and_so_are_the_next(
        self, error: RuntimeError
    ) -> None:
        sizes: list[int] = []

        def ask(rows: list[str]) -> list[str]:
            sizes.append(len(rows))
            if len(rows) > 1:
                raise error
            return rows

        assert in_batches(ROWS, 4, ask) == ROWS
        assert sizes == [4, 2, 1, 1, 1, 1, 1]

    def test_a_single_row_without_memory_is_no_result(self) -> None:
        def ask(rows: list[str]) -> list[str]:
            raise torch.OutOfMemoryError

        with pytest.raises(JudgeError, match="alone does not fit"):
            in_batches(ROWS, 4, ask)

    @pytest.mark.parametrize("error", [RuntimeError("x"), ValueError("x"), IndexError("x")])
    def test_a_failing_model_is_no_result(self, error: Exception) -> None:
        def ask(rows: list[str]) -> list[str]:
            raise error

        with pytest.raises(JudgeError, match="failed on a batch"):
            in_batches(ROWS, 4, ask)
