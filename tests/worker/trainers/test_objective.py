"""The token loss: what is counted, at which weights, and independent of padding."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import log_softmax

from models.methods import BoosterConfig
from tests.tiny_model import tiny_adapted, tiny_examples, tiny_model
from worker.data import IGNORED, Batch, collate, pack
from worker.lora import trainable_parameters
from worker.trainers.booster import Booster
from worker.trainers.objective import TokenLoss, mean_token_loss, token_sums
from worker.trainers.step import Step, Weights


def widened(batch: Batch, extra: int, filler: int) -> Batch:
    """The same rows with `extra` more columns of padding."""

    def wider(tensor: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (0, extra), value=value)

    return Batch(
        wider(batch.input_ids, filler),
        wider(batch.attention_mask, 0),
        wider(batch.labels, IGNORED),
        batch.trained_tokens,
    )


def moved_left(batch: Batch) -> Batch:
    """The same rows with their pads in front."""
    pads = [int((row == 0).sum()) for row in batch.attention_mask]

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.roll(by) for row, by in zip(tensor, pads, strict=True)])

    return Batch(
        turned(batch.input_ids),
        turned(batch.attention_mask),
        turned(batch.labels),
        batch.trained_tokens,
    )


class TestTokenLoss:
    def test_is_the_mean_over_trained_tokens_of_a_naive_loop(self) -> None:
        model = tiny_model(dtype=torch.float64)
        examples = tiny_examples(5)
        total, tokens, right = 0.0, 0, 0
        for example in examples:
            logits = model(torch.tensor([example.input_ids])).logits[0]
            for place in range(1, len(example.input_ids)):
                if example.labels[place] != IGNORED:
                    scores = log_softmax(logits[place - 1], dim=-1)
                    total -= float(scores[example.labels[place]].detach())
                    right += int(scores.argmax()) == example.labels[place]
                    tokens += 1
        measured = TokenLoss(model)(
            trainable_parameters(model), [collate(examples, 256)], noise="rows"
        )
        assert measured.tokens == tokens
        assert float(measured.loss) == pytest.approx(total / tokens, rel=1e-12)
        assert float(measured.token_accuracy) == pytest.approx(right / tokens)

    def test_gradient_is_that_of_backward(self) -> None:
        model = tiny_adapted()
        weights = trainable_parameters(model)
        batch = collate(tiny_examples(4), 256)
        measured = TokenLoss(model)(weights, [batch], noise="rows")
        (token_sums(model, batch)[0] / batch.trained_tokens).backward()
        for name, tensor in weights.items():
            torch.testing.assert_close(measured.gradient[name], tensor.grad, rtol=1e-5, atol=1e-7)

    def test_gradient_checkpointing_recomputes_at_the_given_weights(self) -> None:
        # The recomputation happens in the backward pass; at the model's own weights it would be wrong.
        model = tiny_adapted(dtype=torch.float64).train()
        beside = {n: w.detach() + 0.05 for n, w in trainable_parameters(model).items()}
        batch = collate(tiny_examples(4), 256)
        plain = TokenLoss(model)(beside, [batch], noise="rows")
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        again = TokenLoss(model)(beside, [batch], noise="rows")
        for name in beside:
            torch.testing.assert_close(again.gradient[name], plain.gradient[name])

    def test_works_on_all_weights_of_a_model_with_tied_embeddings(self) -> None:
        model = tiny_model(dtype=torch.float64)
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
        weights = trainable_parameters(model)
        assert "lm_head.weight" not in weights
        measured = TokenLoss(model)(weights, [collate(tiny_examples(4), 256)], noise="rows")
        doubled = {name: 2 * weight.detach() for name, weight in weights.items()}
        moved = TokenLoss(model)(doubled, [collate(tiny_examples(4), 256)], noise="rows")
        with torch.no_grad():
            for weight in weights.values():
                weight.mul_(2)
        there = TokenLoss(model)(weights, [collate(tiny_examples(4), 256)], noise="rows")
        assert float(moved.loss) == float(there.loss) != float(measured.loss)

    def test_needs_a_batch(self) -> None:
        model = tiny_adapted()
        with pytest.raises(ValueError, match="no batches"):
            TokenLoss(model)(trainable_parameters(model), [], noise="rows")


class TestPadding:
    """E9: f, h and G do not depend on how far, on which side, with what or whether at all rows are padded."""

    def found(
        self,
        extra: int = 0,
        filler: int = 256,
        *,
        one_by_one: bool = False,
        is_packed: bool = False,
        is_left: bool = False,
    ) -> tuple[Weights, list[float]]:
        model = tiny_adapted(dtype=torch.float64)

        def rows(seed: int) -> list[Batch]:
            examples = tiny_examples(5, seed=seed)
            if one_by_one:  # a batch of one row has no padding at all
                return [collate([example], filler) for example in examples]
            if is_packed:
                return [pack(examples)]
            if is_left:
                return [moved_left(collate(examples, filler))]
            return [widened(collate(examples, filler), extra, filler)]

        rule = Booster(BoosterConfig(lambda_=5, alpha=0.1))
        answer = rule(
            Step(0, 1, trainable_parameters(model), rows(1), TokenLoss(model), lambda _: rows(2))
        )
        scalars = [answer.measured.loss, *answer.diagnostics.values()]
        return answer.gradient, [float(value) for value in scalars]

    @pytest.mark.parametrize(
        "other",
        [
            {"extra": 7, "filler": 256},
            {"extra": 0, "filler": 3},
            {"one_by_one": True},
            {"is_packed": True},
            {"is_left": True},
        ],
    )
    def test_changes_nothing(self, other: dict[str, int]) -> None:
        gradient, scalars = self.found(0, 256)
        changed, others = self.found(**other)
        # Pads in front shift the positions, and Llama's rotary tables are float32 whatever the model is.
        near = 1e-8 if other.get("is_left") else 1e-10
        assert others == pytest.approx(scalars, rel=near)
        for name, tensor in gradient.items():
            torch.testing.assert_close(changed[name], tensor, rtol=100 * near, atol=near)


class TestMeanTokenLoss:
    def test_is_the_loss_without_dropout_and_puts_the_mode_back(self) -> None:
        model = tiny_adapted(dropout=0.5)
        examples = tiny_examples(7)
        measured = TokenLoss(model)(
            trainable_parameters(model), [collate(examples, 256)], noise="rows"
        )
        model.train()
        canary = mean_token_loss(model, examples, 256, batch_size=3)
        assert canary == pytest.approx(float(measured.loss), rel=1e-5)
        assert model.training
