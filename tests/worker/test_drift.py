"""Drift is the ratio of two perplexities on the same tokens, and its interval is paired."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from models.rows import InvalidRows
from tests.tiny_model import tiny_adapted, tiny_examples, tiny_model, tiny_tokenizer
from worker.drift import RowLosses, compare, read_text_rows, row_losses
from worker.task_rows import UnreadableFile
from worker.trainers.objective import mean_token_loss


def losses(*rows: tuple[float, int]) -> RowLosses:
    return RowLosses(
        torch.tensor([loss for loss, _ in rows], dtype=torch.float64),
        torch.tensor([tokens for _, tokens in rows], dtype=torch.float64),
    )


class TestRowLosses:
    def test_adds_up_to_the_mean_token_loss_in_the_order_of_the_rows(self) -> None:
        model, rows = tiny_model(), tiny_examples(11)
        together = row_losses(model, rows, 0, batch_size=4)
        assert together.mean == pytest.approx(mean_token_loss(model, rows, 0), rel=1e-6)
        for place in (0, 5, 10):
            alone = row_losses(model, rows[place : place + 1], 0)
            assert together.losses[place].item() == pytest.approx(alone.losses.item(), rel=1e-5)
            assert together.tokens[place] == alone.tokens[0]

    def test_reports_progress_and_leaves_the_mode_alone(self) -> None:
        model, seen = tiny_model().train(), []
        row_losses(model, tiny_examples(5), 0, batch_size=2, on_progress=lambda *n: seen.append(n))
        assert seen == [(2, 5), (4, 5), (5, 5)]
        assert model.training


class TestCompare:
    def test_is_the_ratio_of_the_perplexities(self) -> None:
        own, parent = losses((4.0, 2), (9.0, 3)), losses((3.0, 2), (7.0, 3))
        drift = compare(own, parent)
        assert drift.loss == pytest.approx(13 / 5)
        assert drift.parent_loss == pytest.approx(2.0)
        assert drift.ratio == pytest.approx(math.exp(3 / 5))
        assert (drift.rows, drift.tokens) == (2, 5)

    def test_a_model_has_not_drifted_from_itself(self) -> None:
        rows = row_losses(tiny_model(), tiny_examples(9), 0)
        drift = compare(rows, rows)
        assert (drift.ratio, drift.low, drift.high) == (1.0, 1.0, 1.0)

    def test_rows_that_are_hard_for_both_widen_nothing(self) -> None:
        parent = losses(*((float(10 * place), 10) for place in range(50)))
        own = RowLosses(parent.losses + 1.0, parent.tokens)
        drift = compare(own, parent)
        assert drift.low == pytest.approx(drift.high)
        assert drift.ratio == pytest.approx(math.exp(0.1))

    def test_the_interval_covers_what_the_rows_disagree_on_and_is_always_the_same(self) -> None:
        parent = losses(*((10.0, 10) for _ in range(100)))
        own = losses(*((10.0 + (place % 2), 10) for place in range(100)))
        drift = compare(own, parent)
        assert 1.0 < drift.low < drift.ratio < drift.high < math.exp(0.1)
        # The standard error of a mean of 100 coins, each worth 0.1 nats, is 0.005.
        assert math.log(drift.high / drift.ratio) == pytest.approx(1.96 * 0.005, rel=0.15)
        assert compare(own, parent) == drift

    def test_other_tokens_cannot_be_compared(self) -> None:
        with pytest.raises(ValueError, match="same tokens"):
            compare(losses((1.0, 2)), losses((1.0, 3)))

    def test_an_adapter_that_does_something_shows(self) -> None:
        rows = tiny_examples(20)
        drift = compare(row_losses(tiny_adapted(), rows, 0), row_losses(tiny_model(), rows, 0))
        assert drift.ratio != 1.0
        assert drift.low < drift.ratio < drift.high


class TestReadTextRows:
    def write(self, folder: Path, *rows: object) -> Path:
        path = folder / "text.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def test_every_token_of_a_text_counts_and_of_a_conversation_its_answer(
        self, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path, {"text": "abcd"}, {"prompt": "ab", "completion": "cd"})
        plain, row = read_text_rows(path, tiny_tokenizer(), 16)
        assert plain.labels == plain.input_ids
        assert len(plain.input_ids) == 4
        assert sum(label >= 0 for label in row.labels) == 3  # c, d and the end

    def test_long_texts_lose_their_end(self, tmp_path: Path) -> None:
        (row,) = read_text_rows(self.write(tmp_path, {"text": "x" * 99}), tiny_tokenizer(), 16)
        assert len(row.input_ids) == 16

    @pytest.mark.parametrize("row", [{"text": 7}, {"text": "x"}, {"prompt": "x"}, ["x"], "x"])
    def test_names_the_line_of_a_faulty_row(self, tmp_path: Path, row: object) -> None:
        with pytest.raises(InvalidRows, match="line 2"):
            read_text_rows(self.write(tmp_path, {"text": "good"}, row), tiny_tokenizer(), 16)

    def test_no_rows_are_no_evidence(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableFile, match="0 rows"):
            read_text_rows(self.write(tmp_path), tiny_tokenizer(), 16)
