"""Rows that belong together are drawn together and padded to one length."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tiny_model import tiny_examples
from worker.data import Batch
from worker.trainers.draw import RowSource

HARMFUL, REFUSALS = tiny_examples(7, seed=1, longest=9), tiny_examples(7, seed=2, longest=20)


def source(size: int | None = None) -> RowSource:
    return RowSource("harmful", HARMFUL, 0, size, 256, torch.device("cpu"))


def own_width(batch: Batch) -> int:
    return int(batch.attention_mask.sum(-1).max())


class TestDraw:
    @pytest.mark.parametrize("size", [None, 1, 2])
    def test_rows_beside_each_other_are_padded_to_one_length(self, size: int | None) -> None:
        harmful = replace(source(size), beside=REFUSALS).draw(0, 5)
        refusals = replace(source(size), examples=REFUSALS, beside=HARMFUL).draw(0, 5)
        assert any(
            own_width(one) != own_width(other) for one, other in zip(harmful, refusals, strict=True)
        )
        for one, other in zip(harmful, refusals, strict=True):
            assert one.input_ids.shape == other.input_ids.shape
            assert one.input_ids.shape[1] == max(own_width(one), own_width(other))

    def test_being_beside_others_changes_nothing_but_the_length(self) -> None:
        (alone,), (together,) = source().draw(3, 5), replace(source(), beside=REFUSALS).draw(3, 5)
        width = alone.input_ids.shape[1]
        assert torch.equal(together.input_ids[:, :width], alone.input_ids)
        assert torch.equal(together.labels[:, :width], alone.labels)
        assert not together.attention_mask[:, width:].any()
        assert together.trained_tokens == alone.trained_tokens

    def test_without_others_a_batch_is_as_wide_as_its_longest_row(self) -> None:
        for batch in source(2).draw(0, 5):
            assert batch.input_ids.shape[1] == own_width(batch)
