"""Validation rows while a model is trained: what DPO's loss is on pairs, and that looking changes nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from models.hyperparameters import TrainConfig
from models.methods import DpoConfig
from tests.tiny_model import tiny_adapted, tiny_examples
from tests.worker.trainers.test_dpo import by_hand, moved
from worker.data import Encoded
from worker.lora import trainable_parameters
from worker.trainers.dpo import Dpo
from worker.trainers.loop import StepMetrics, train
from worker.validation import MAX_ROWS, Validation, score_pairs

# Each test runs models.
pytestmark = pytest.mark.long

PAIRS = Encoded(tiny_examples(20, seed=3), tiny_examples(20, seed=7))
LOG_2 = math.log(2)


class TestPairs:
    def test_before_the_first_step_the_loss_is_log_2_and_no_pair_is_ahead(self) -> None:
        score = score_pairs(tiny_adapted(), PAIRS, 256, beta=0.1)
        assert score(range(20)) == (pytest.approx(LOG_2, abs=1e-6), 0)

    def test_the_loss_is_that_of_the_margins_against_the_model_it_was_made_on(self) -> None:
        model = tiny_adapted()
        model.eval()
        numbers = [0, 5, 17]
        sides = [[side[n] for n in numbers] for side in (PAIRS.examples, PAIRS.non_preferred)]
        before = [[by_hand(model, example) for example in side] for side in sides]
        score = score_pairs(model, PAIRS, 256, beta=0.5)
        moved(model)
        after = [[by_hand(model, example) for example in side] for side in sides]
        margins = [
            0.5 * ((after[0][i] - before[0][i]) - (after[1][i] - before[1][i])) for i in range(3)
        ]
        loss, accuracy = score(numbers)
        assert loss == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3, rel=1e-4)
        assert accuracy == pytest.approx(sum(m > 0 for m in margins) / 3)

    def test_training_pairs_as_validation_pairs_show_the_training_loss(self) -> None:
        model = tiny_adapted()
        config = TrainConfig(steps=12, batch_size=20, learning_rate=1e-2, seed=1)
        validation = Validation(score_pairs(model, PAIRS, 256, beta=0.1), 20, config, 1, {12})
        seen: list[StepMetrics] = []
        train(
            model,
            Dpo(DpoConfig(beta=0.1)),
            PAIRS.examples,
            config,
            pad_id=256,
            non_preferred=PAIRS.non_preferred,
            validate=validation,
            on_step=seen.append,
        )
        # Of a step it is measured after the update, so it is the next step's training loss.
        for now, following in itertools.pairwise(seen):
            assert now.validation["valid_loss"] == pytest.approx(following.loss, rel=1e-3)
        last = seen[-1].validation
        assert last["full_valid_loss"] == pytest.approx(last["valid_loss"], rel=1e-6)
        assert last["full_valid_mean_token_accuracy"] == 1
        assert last["full_valid_loss"] < LOG_2

    def test_it_only_looks(self) -> None:
        weights = []
        for is_watched in (False, True):
            model = tiny_adapted()
            config = TrainConfig(steps=4, batch_size=4, learning_rate=1e-2, seed=1)
            score = score_pairs(model, PAIRS, 256, beta=0.1)
            train(
                model,
                Dpo(DpoConfig(beta=0.1)),
                PAIRS.examples,
                config,
                pad_id=256,
                non_preferred=PAIRS.non_preferred,
                validate=Validation(score, 20 if is_watched else 0, config, 1, {2, 4}),
            )
            weights.append({n: p.detach().clone() for n, p in trainable_parameters(model).items()})
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_of_a_long_file_the_first_rows_are_measured() -> None:
    asked: list[int] = []

    def score(numbers: object) -> tuple[float, float]:
        asked.extend(numbers)  # type: ignore[call-overload]
        return 1.0, 0.5

    config = TrainConfig(steps=2, batch_size=8, learning_rate=1e-2, seed=1)
    measured = Validation(score, MAX_ROWS + 100, config, 5, {2})(2)
    assert set(measured) == {
        "valid_loss",
        "valid_mean_token_accuracy",
        "full_valid_loss",
        "full_valid_mean_token_accuracy",
    }
    assert len(asked) == 8 + MAX_ROWS
    assert max(asked) == MAX_ROWS - 1
