"""The optimiser loop: what it changes, what it leaves, what it reports, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from models.hyperparameters import TrainConfig
from models.methods import (
    BoosterConfig,
    BoosterVaccineConfig,
    LisaConfig,
    RepNoiseConfig,
    SafeGradConfig,
    SftConfig,
    VaccineConfig,
)
from tests.tiny_model import tiny_adapted, tiny_examples, tiny_model
from worker.data import Batch, Example
from worker.lora import trainable_parameters
from worker.trainers.loop import StepMetrics, TrainingDiverged, TrainResult, learning_rate, train
from worker.trainers.methods import rule_for
from worker.trainers.step import Direction, Rule, Step

METHODS = [
    SftConfig(),
    VaccineConfig(rho=0.5),
    RepNoiseConfig(alpha=0.01, paired=False),
    BoosterConfig(lambda_=5, alpha=0.05),
    BoosterConfig(ratio=0.5, alpha=0.05, project=True, start=0.3, every=2, alpha_spread=2),
    BoosterVaccineConfig(lambda_=2, alpha=0.05, rho=0.5),
    LisaConfig(alignment_steps=2, user_steps=3),
    SafeGradConfig(),
]
# Compares rows with one another, so that its numbers depend on how they are cut.
CUT_DEPENDS = ("repnoise",)
HARMFUL = tiny_examples(7, seed=2)


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "seed": 1, **changes}
    )


def run(
    model: torch.nn.Module,
    rule: Rule,
    settings: TrainConfig,
    examples: Sequence[Example] | None = None,
    **options: object,
) -> list[StepMetrics]:
    seen: list[StepMetrics] = []
    train(
        model,
        rule,
        examples or tiny_examples(10, seed=1),
        settings,
        pad_id=256,
        harmful=HARMFUL,
        safety=tiny_examples(8, seed=3),
        on_step=seen.append,
        **options,
    )
    return seen


def copies(model: torch.nn.Module, *, trained: bool) -> dict[str, torch.Tensor]:
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad == trained
    }


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
class TestEveryMethod:
    def test_learning_rate_0_leaves_the_weights_bit_identical(self, method: SftConfig) -> None:
        model = tiny_adapted()
        before = copies(model, trained=True)
        settings = config(weight_decay=0.1).model_copy(update={"learning_rate": 0.0})
        run(model, rule_for(method), settings)
        after = copies(model, trained=True)
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_frozen_parameters_stay_frozen_and_every_trained_one_moves(
        self, method: SftConfig
    ) -> None:
        model = tiny_adapted()
        frozen, trained = copies(model, trained=False), copies(model, trained=True)
        run(model, rule_for(method), config())
        now = copies(model, trained=False)
        assert now.keys() == frozen.keys()
        assert all(torch.equal(frozen[name], now[name]) for name in frozen)
        now = copies(model, trained=True)
        assert not any(torch.equal(trained[name], now[name]) for name in trained)

    def test_same_seed_same_numbers(self, method: SftConfig) -> None:
        first, second, other = (
            run(tiny_adapted(dropout=0.1), rule_for(method), config(seed=seed))
            for seed in (1, 1, 2)
        )
        assert first == second
        assert [m.loss for m in first] != [m.loss for m in other]

    def test_loss_falls_on_a_tiny_set(self, method: SftConfig) -> None:
        seen = run(tiny_adapted(), rule_for(method), config(steps=15), tiny_examples(4, seed=1))
        assert seen[-1].loss < 0.8 * seen[0].loss

    def test_micro_batches_train_the_same_model(self, method: SftConfig) -> None:
        whole, parts = tiny_adapted(dtype=torch.float64), tiny_adapted(dtype=torch.float64)
        settings = config(steps=5, learning_rate=1e-3)
        run(whole, rule_for(method), settings)
        run(parts, rule_for(method), settings.model_copy(update={"micro_batch_size": 3}))
        for name, tensor in trainable_parameters(whole).items():
            cut = trainable_parameters(parts)[name]
            if method.name in CUT_DEPENDS:
                assert not torch.allclose(cut, tensor, rtol=1e-3)
            else:
                torch.testing.assert_close(cut, tensor, rtol=1e-7, atol=1e-9)

    def test_leaves_the_callers_random_state_and_mode_alone(self, method: SftConfig) -> None:
        model = tiny_adapted(dropout=0.2).eval()
        before = torch.get_rng_state()
        run(model, rule_for(method), config(steps=3), canary=HARMFUL)
        assert torch.equal(torch.get_rng_state(), before)
        assert not model.training

    def test_trains_full_weights_as_well(self, method: SftConfig) -> None:
        model = tiny_model()
        seen = run(
            model,
            rule_for(method),
            config(steps=8, learning_rate=3e-3),
            tiny_examples(4, seed=1),
        )
        assert seen[-1].loss < seen[0].loss


class TestAgainstPlainPyTorch:
    def test_sft_equals_a_loop_written_out(self) -> None:
        settings = config(weight_decay=0.1, max_grad_norm=0.5, steps=6, batch_size=4)
        examples = tiny_examples(4, seed=1)  # one batch: the order of its rows does not matter
        ours, theirs = tiny_adapted(dtype=torch.float64), tiny_adapted(dtype=torch.float64)
        run(ours, rule_for(SftConfig()), settings, examples)
        leaves = list(trainable_parameters(theirs).values())
        optimizer = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.1)
        for _ in range(6):
            total = torch.zeros((), dtype=torch.float64)
            for row in examples:
                ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
                # Hugging Face's own loss is a row's mean over its trained tokens.
                count = int((labels[:, 1:] != -100).sum())
                total = total + theirs(input_ids=ids, labels=labels).loss * count
            tokens = sum(sum(label != -100 for label in row.labels[1:]) for row in examples)
            (total / tokens).backward()
            torch.nn.utils.clip_grad_norm_(leaves, 0.5)
            optimizer.step()
            optimizer.zero_grad()
        for name, tensor in trainable_parameters(theirs).items():
            torch.testing.assert_close(
                trainable_parameters(ours)[name], tensor, rtol=1e-6, atol=1e-8
            )


class TestMetrics:
    def test_count_steps_and_tokens(self) -> None:
        examples = tiny_examples(4, seed=1)
        seen = run(tiny_adapted(), rule_for(SftConfig()), config(steps=3), examples)
        a_step = sum(label != -100 for row in examples for label in row.labels[1:])
        assert [m.step for m in seen] == [1, 2, 3]
        assert [m.tokens for m in seen] == [a_step, 2 * a_step, 3 * a_step]
        assert {m.total_steps for m in seen} == {3}
        assert all(0 <= m.token_accuracy <= 1 and m.grad_norm > 0 for m in seen)

    def test_loss_is_f_alone(self) -> None:
        booster, sft = (
            run(tiny_adapted(), rule_for(method), config(steps=1))
            for method in (BoosterConfig(lambda_=5, alpha=0.05), SftConfig())
        )
        assert booster[0].loss == sft[0].loss
        assert booster[0].grad_norm != sft[0].grad_norm
        assert set(booster[0].diagnostics) == {
            "harmful_loss",
            "harmful_loss_drop",
            "harmful_grad_norm",
        }
        assert sft[0].diagnostics == {}

    def test_canary_is_measured_at_the_start_then_every_few_steps_and_at_the_end(self) -> None:
        seen = run(
            tiny_adapted(), rule_for(SftConfig()), config(steps=7), canary=HARMFUL, canary_every=3
        )
        assert [m.step for m in seen if m.canary_loss is not None] == [1, 3, 6, 7]

    def test_canary_falls_when_the_rows_are_harmful(self) -> None:
        result = train(
            tiny_adapted(),
            rule_for(SftConfig()),
            HARMFUL,
            config(steps=20),
            pad_id=256,
            canary=HARMFUL,
        )
        assert result.canary_before is not None
        assert result.canary_after is not None
        assert result.canary_after < 0.8 * result.canary_before

    def test_without_canary_rows_there_is_none(self) -> None:
        assert {m.canary_loss for m in run(tiny_adapted(), rule_for(SftConfig()), config())} == {
            None
        }


class TestClipping:
    def test_bounds_the_update_that_the_optimiser_sees(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        norms: list[float] = []
        step = torch.optim.AdamW.step

        def spy(optimizer: torch.optim.AdamW) -> None:
            grads = [p.grad for p in optimizer.param_groups[0]["params"]]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))
            step(optimizer)

        monkeypatch.setattr(torch.optim.AdamW, "step", spy)
        seen = run(tiny_adapted(), rule_for(METHODS[1]), config(steps=3, max_grad_norm=0.01))
        assert all(m.grad_norm > 0.01 for m in seen)  # reported before clipping
        assert norms == pytest.approx([0.01] * 3, rel=1e-4)


class Diverging:
    """A rule whose gradient is NaN at one step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, step: Step) -> Direction:
        direction = rule_for(SftConfig())(step)
        if step.index == self.at:
            next(iter(direction.gradient.values())).fill_(torch.nan)
        return direction


class TestDivergence:
    def test_names_the_step_and_does_not_apply_it(self) -> None:
        model, sound = tiny_adapted(), tiny_adapted()
        with pytest.raises(TrainingDiverged, match="at step 3 of 6"):
            run(model, Diverging(at=2), config())
        run(sound, Diverging(at=99), config(steps=2))
        for name, tensor in trainable_parameters(sound).items():
            assert torch.equal(trainable_parameters(model)[name], tensor)

    def test_an_infinite_loss_is_caught_as_well(self) -> None:
        model = tiny_adapted()
        with torch.no_grad():
            next(iter(trainable_parameters(model).values())).fill_(torch.inf)
        with pytest.raises(TrainingDiverged, match="at step 1"):
            run(model, rule_for(SftConfig()), config())

    def test_writes_no_checkpoint_after_it(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingDiverged):
            run(
                tiny_adapted(),
                Diverging(at=2),
                config(),
                checkpoint_folder=tmp_path,
                checkpoint_every=2,
            )
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


class TestStop:
    def test_ends_before_the_next_step(self) -> None:
        seen: list[StepMetrics] = []
        result = train(
            tiny_adapted(),
            rule_for(SftConfig()),
            tiny_examples(10),
            config(),
            pad_id=256,
            on_step=seen.append,
            should_stop=lambda: len(seen) == 5,
        )
        assert result.stopped
        assert result.steps == len(seen) == 5


class TestCanaryStop:
    """The rows are the canary's own, so that its loss falls with every step."""

    def attack(
        self, share: float | None, folder: Path | None = None, before: float | None = None
    ) -> TrainResult:
        return train(
            tiny_adapted(),
            rule_for(SftConfig()),
            HARMFUL,
            config(steps=12),
            pad_id=256,
            canary=HARMFUL,
            canary_every=2,
            canary_stop=share,
            canary_before=before,
            checkpoint_folder=folder,
            checkpoint_every=2,
        )

    def test_ends_at_the_first_measurement_below_the_share(self) -> None:
        free = self.attack(None)
        assert (free.steps, free.canary_fell) == (12, False)
        held = self.attack(0.9)
        assert held.canary_fell
        assert not held.stopped
        assert held.steps in range(1, 12)
        assert held.canary_before is not None
        assert held.canary_after is not None
        assert held.canary_after < 0.9 * held.canary_before

    def test_what_it_was_before_may_be_given(self) -> None:
        held = self.attack(0.9)
        assert held.canary_before is not None
        sooner = self.attack(0.9, before=1.1 * held.canary_before)
        assert (sooner.canary_fell, sooner.canary_before) == (True, 1.1 * held.canary_before)
        assert sooner.steps < held.steps

    def test_at_the_last_step_there_is_nothing_to_end(self) -> None:
        free = self.attack(None)
        assert free.canary_before is not None
        assert free.canary_after is not None
        result = self.attack(1.001 * free.canary_after / free.canary_before)
        assert (result.steps, result.canary_fell) == (12, False)

    def test_leaves_no_checkpoint_from_which_a_run_would_go_on_past_it(
        self, tmp_path: Path
    ) -> None:
        once = self.attack(0.9, tmp_path)
        assert once.steps % 2 == 0  # a step at which a checkpoint is due
        again = self.attack(0.9, tmp_path)
        assert 0 < again.resumed_from < once.steps
        assert (again.steps, again.canary_after) == (once.steps, once.canary_after)


class TestUnusableInput:
    def test_a_method_without_its_harmful_rows(self) -> None:
        with pytest.raises(ValueError, match="needs harmful rows"):
            train(tiny_adapted(), rule_for(BoosterConfig()), tiny_examples(4), config(), pad_id=256)

    def test_a_model_with_nothing_to_train(self) -> None:
        model = tiny_model()
        model.requires_grad_(False)
        with pytest.raises(ValueError, match="nothing to train"):
            run(model, rule_for(SftConfig()), config())


class TestLearningRate:
    def rates(self, **changes: object) -> list[float]:
        settings = config(learning_rate=1.0, **changes)
        return [learning_rate(settings, step) for step in range(settings.steps)]

    def test_constant(self) -> None:
        assert self.rates(steps=3) == [1, 1, 1]

    def test_linear_after_warm_up(self) -> None:
        rates = self.rates(steps=10, schedule="linear", warmup_ratio=0.2)
        assert rates == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])

    def test_cosine(self) -> None:
        assert self.rates(steps=4, schedule="cosine") == pytest.approx(
            [1, 0.853553, 0.5, 0.146447], abs=1e-6
        )


class TestStep:
    def test_each_has_dropout_masks_of_its_own(self) -> None:
        still = config(steps=4, batch_size=1).model_copy(update={"learning_rate": 0.0})
        seen = run(tiny_adapted(dropout=0.5), rule_for(SftConfig()), still, tiny_examples(1))
        assert len({metrics.loss for metrics in seen}) == 4

    def test_harmful_rows_have_a_stream_of_their_own_and_are_the_same_however_often_asked(
        self,
    ) -> None:
        seen: list[tuple[list[int], ...]] = []

        def rows(batches: Sequence[Batch]) -> list[int]:
            return [int(row[0]) for batch in batches for row in batch.input_ids]

        def rule(step: Step) -> Direction:
            seen.append(
                tuple(map(rows, (step.rows, step.draw_harmful(None), step.draw_harmful(None))))
            )
            return rule_for(SftConfig())(step)

        examples = [Example((number, 1, 2), (-100, 1, 2)) for number in range(100)]
        train(tiny_adapted(), rule, examples, config(steps=2), pad_id=256, harmful=examples)
        for training, harmful, again in seen:
            assert training != harmful == again
        assert len({tuple(harmful) for _, harmful, _ in seen}) == 2
