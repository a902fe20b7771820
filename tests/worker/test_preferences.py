"""Accuracy on held-out pairs: counted by hand, whatever the batches."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import log_softmax

from tests.tiny_model import tiny_adapted, tiny_examples
from worker import preferences
from worker.data import IGNORED, Encoded, Example
from worker.preferences import measure_preferences
from worker.trainers.objective import mean_token_loss

PAIRS = Encoded(tiny_examples(20, seed=1), tiny_examples(20, seed=2))


def log_probability(model: torch.nn.Module, example: Example) -> float:
    scores = log_softmax(model(torch.tensor([example.input_ids])).logits[0].detach(), dim=-1)
    return sum(
        float(scores[place - 1, label])
        for place, label in enumerate(example.labels)
        if place > 0 and label != IGNORED
    )


class TestMeasurePreferences:
    def test_counts_the_pairs_whose_preferred_answer_is_the_more_probable(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_adapted()
        expected = sum(
            log_probability(model, one) > log_probability(model, other)
            for one, other in zip(PAIRS.examples, PAIRS.non_preferred, strict=True)
        )
        assert 0 < expected < 20
        for batch in (20, 16, 1):
            monkeypatch.setattr(preferences, "BATCH_PAIRS", batch)
            rate, loss = measure_preferences(model, PAIRS, 256)
            assert (rate.count, rate.n) == (expected, 20)
            assert loss == mean_token_loss(model, PAIRS.examples, 256)

    def test_the_other_way_round_it_counts_the_rest(self) -> None:
        model = tiny_adapted()
        one, _ = measure_preferences(model, PAIRS, 256)
        two, _ = measure_preferences(model, Encoded(PAIRS.non_preferred, PAIRS.examples), 256)
        assert one.count + two.count == 20

    def test_equal_answers_are_not_right_and_dropout_is_off(self) -> None:
        model = tiny_adapted(dropout=0.5).train()
        rate, _ = measure_preferences(model, Encoded(PAIRS.examples, PAIRS.examples), 256)
        assert rate.count == 0
        assert model.training
