"""DPO: the loss against arithmetic, the gradient against differences, and the reference that it is held to."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import LlamaForCausalLM

from models.hyperparameters import TrainConfig
from models.methods import DpoConfig
from tests.tiny_model import tiny_adapted, tiny_examples, tiny_model
from worker.data import IGNORED, Batch, Example, collate, pack
from worker.lora import trainable_parameters
from worker.trainers.checkpoint import CheckpointMismatch
from worker.trainers.dpo import Dpo
from worker.trainers.loop import StepMetrics, TrainResult, train
from worker.trainers.objective import TokenLoss, row_log_probabilities
from worker.trainers.step import Step

# Each test trains models.
pytestmark = pytest.mark.long

PREFERRED, OTHER = tiny_examples(10, seed=1), tiny_examples(10, seed=9)


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "seed": 1, **changes}
    )


def run(
    model: torch.nn.Module, settings: TrainConfig, *, beta: float = 0.1, **options: object
) -> tuple[list[StepMetrics], TrainResult]:
    seen: list[StepMetrics] = []
    given = {"non_preferred": OTHER, "on_step": seen.append, **options}
    result = train(model, Dpo(DpoConfig(beta=beta)), PREFERRED, settings, pad_id=256, **given)
    return seen, result


def step(model: torch.nn.Module, pairs: list[tuple[Batch, Batch]]) -> Step:
    return Step(
        index=0,
        total=1,
        weights=trainable_parameters(model),
        rows=[preferred for preferred, _ in pairs],
        measure=TokenLoss(model).at(0),
        draw_harmful=lambda _: [],
        pairs=lambda: pairs,
        every_pair=lambda: pairs,
    )


def paired(first: int = 0, last: int = 3, pad_id: int = 256) -> tuple[Batch, Batch]:
    return tuple(  # type: ignore[return-value]
        Batch(
            b.input_ids, b.attention_mask, b.labels, b.trained_tokens, None, (*range(first, last),)
        )
        for b in (collate(side[first:last], pad_id) for side in (PREFERRED, OTHER))
    )


def moved(model: torch.nn.Module, by: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in trainable_parameters(model).values():
            tensor.add_(by * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))


def by_hand(model: torch.nn.Module, example: Example) -> float:
    """log pi(y|x), token after token."""
    scores = log_softmax(model(torch.tensor([example.input_ids])).logits[0].detach(), dim=-1)
    return sum(
        float(scores[place - 1, token])
        for place, token in enumerate(example.labels)
        if place > 0 and token != IGNORED
    )


class TestRowLogProbabilities:
    def test_sums_each_rows_trained_tokens(self) -> None:
        model = tiny_model(dtype=torch.float64)
        expected = [by_hand(model, example) for example in PREFERRED]
        padded = row_log_probabilities(model, collate(PREFERRED, 256))
        assert padded.tolist() == pytest.approx(expected, rel=1e-12)
        packed = row_log_probabilities(model, pack(PREFERRED))
        assert packed.tolist() == pytest.approx(expected, rel=1e-12)

    def test_a_row_without_a_trained_token_has_probability_1(self) -> None:
        silent = Example(PREFERRED[0].input_ids, (IGNORED,) * len(PREFERRED[0].input_ids))
        for batch in (collate([silent, PREFERRED[1]], 256), pack([silent, PREFERRED[1]])):
            assert row_log_probabilities(tiny_model(), batch)[0] == 0


class TestLoss:
    def test_is_the_papers_equation_7_worked_out_by_hand(self) -> None:
        model, beta = tiny_adapted(dtype=torch.float64), 0.3
        rule = Dpo(DpoConfig(beta=beta))
        pairs = [paired()]
        reference = [
            (by_hand(model, p), by_hand(model, o)) for p, o in zip(PREFERRED, OTHER, strict=True)
        ]
        rule(step(model, pairs))
        moved(model)
        found = rule(step(model, pairs))
        rewards = [
            (beta * (by_hand(model, p) - rp), beta * (by_hand(model, o) - ro))
            for p, o, (rp, ro) in zip(PREFERRED[:3], OTHER[:3], reference[:3], strict=True)
        ]
        margins = [preferred - other for preferred, other in rewards]
        losses = [-math.log(1 / (1 + math.exp(-margin))) for margin in margins]
        assert float(found.measured.loss) == pytest.approx(sum(losses) / 3, rel=1e-9)
        right = sum(margin > 0 for margin in margins) / 3
        assert float(found.measured.token_accuracy) == pytest.approx(right)
        seen = {name: float(value) for name, value in found.diagnostics.items()}
        assert seen == pytest.approx(
            {
                "preference_accuracy": right,
                "reward_margin": sum(margins) / 3,
                "preferred_reward": sum(p for p, _ in rewards) / 3,
                "non_preferred_reward": sum(o for _, o in rewards) / 3,
            },
            rel=1e-7,
        )

    @pytest.mark.parametrize("beta", [1e-6, 0.1, 2.0])
    def test_is_log_2_before_the_first_update_whatever_beta(self, beta: float) -> None:
        seen, _ = run(tiny_adapted(), config(steps=1), beta=beta)
        assert seen[0].loss == pytest.approx(math.log(2), abs=1e-5)
        assert seen[0].diagnostics["reward_margin"] == pytest.approx(0, abs=1e-5)

    def test_a_tiny_beta_gives_a_tiny_gradient(self) -> None:
        # At the reference the gradient is -beta/2 (grad log pi(y+) - grad log pi(y-)).
        small, large = (run(tiny_adapted(), config(steps=1), beta=b)[0][0] for b in (1e-3, 1.0))
        assert small.grad_norm == pytest.approx(1e-3 * large.grad_norm, rel=1e-3)

    def test_a_huge_margin_against_the_pair_stays_finite(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        rule = Dpo(DpoConfig(beta=2))
        rule.restore({"reference": torch.tensor([[0.0, -1e6]] * 3, dtype=torch.float64)})
        found = rule(step(model, [paired()]))
        assert float(found.measured.loss) == pytest.approx(2e6, rel=1e-3)
        assert all(torch.isfinite(part).all() for part in found.gradient.values())

    def test_tokens_are_those_of_both_answers(self) -> None:
        _, result = run(tiny_adapted(), config(steps=5, batch_size=2))
        trained = sum(
            label != IGNORED for side in (PREFERRED, OTHER) for e in side for label in e.labels[1:]
        )
        assert result.tokens == trained


class TestGradient:
    def test_is_that_of_finite_differences(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        rule = Dpo(DpoConfig(beta=0.5))
        pairs = [paired()]
        rule(step(model, pairs))
        moved(model)

        def loss() -> float:
            return float(rule(step(model, pairs)).measured.loss)

        gradient = rule(step(model, pairs)).gradient
        epsilon = 1e-5
        for name, tensor in trainable_parameters(model).items():
            flat = tensor.data.view(-1)
            for place in (0, flat.numel() // 2, flat.numel() - 1):
                kept = float(flat[place])
                flat[place] = kept + epsilon
                above = loss()
                flat[place] = kept - epsilon
                below = loss()
                flat[place] = kept
                slope = (above - below) / (2 * epsilon)
                found = float(gradient[name].view(-1)[place])
                assert found == pytest.approx(slope, rel=1e-4, abs=1e-8)

    def test_swapped_answers_give_the_opposite_gradient_at_the_reference(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        preferred, other = paired()
        one = Dpo(DpoConfig())(step(model, [(preferred, other)])).gradient
        two = Dpo(DpoConfig())(step(model, [(other, preferred)])).gradient
        for name in one:
            torch.testing.assert_close(one[name], -two[name])

    def test_does_not_depend_on_what_fills_the_pads(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        one = Dpo(DpoConfig())(step(model, [paired(pad_id=256)])).gradient
        two = Dpo(DpoConfig())(step(model, [paired(pad_id=7)])).gradient
        for name in one:
            torch.testing.assert_close(one[name], two[name])


class TestInTheLoop:
    @pytest.mark.parametrize(
        "cut", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"packing": True}]
    )
    def test_the_same_model_however_the_batch_is_cut(self, cut: dict[str, object]) -> None:
        whole, parts = tiny_adapted(dtype=torch.float64), tiny_adapted(dtype=torch.float64)
        settings = config(steps=5, learning_rate=1e-3)
        seen, _ = run(whole, settings)
        again, _ = run(parts, settings.model_copy(update=cut))
        assert [m.loss for m in again] == pytest.approx([m.loss for m in seen], rel=1e-9)
        for name, tensor in trainable_parameters(whole).items():
            torch.testing.assert_close(trainable_parameters(parts)[name], tensor)

    def test_learns_which_answers_are_preferred(self) -> None:
        model = tiny_adapted()
        seen, _ = run(model, config(steps=40))
        assert seen[-1].loss < 0.4
        assert seen[-1].token_accuracy == 1
        assert seen[-1].diagnostics["reward_margin"] > 0.5
        start = tiny_adapted()
        gained = [
            (by_hand(model, p) - by_hand(start, p)) - (by_hand(model, o) - by_hand(start, o))
            for p, o in zip(PREFERRED, OTHER, strict=True)
        ]
        assert min(gained) > 0

    def test_a_large_beta_moves_the_model_less(self) -> None:
        # Beta weighs the pull back to the reference, so the same margin is reached with a smaller change.
        def drift(beta: float) -> float:
            model, start = tiny_adapted(), tiny_adapted()
            run(model, config(steps=60), beta=beta)
            return sum(abs(by_hand(model, e) - by_hand(start, e)) for e in (*PREFERRED, *OTHER))

        assert drift(2.0) < drift(0.1)

    def test_moves_only_what_is_trained(self) -> None:
        model = tiny_adapted()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        run(model, config())
        for name, tensor in model.named_parameters():
            assert torch.equal(before[name], tensor) != tensor.requires_grad

    def test_trains_all_weights_of_a_model_too(self) -> None:
        model: LlamaForCausalLM = tiny_model()
        seen, _ = run(model, config(steps=20, learning_rate=1e-3))
        assert seen[-1].loss < seen[0].loss

    def test_dropout_is_off_for_the_reference_and_shared_by_no_other_seed(self) -> None:
        one, two = (run(tiny_adapted(dropout=0.3), config(seed=1))[0] for _ in range(2))
        assert one == two
        # The policy's pass has masks, the reference's has none: the margin is not 0 any more.
        assert one[0].diagnostics["reward_margin"] != 0

    def test_needs_one_other_answer_for_each(self) -> None:
        with pytest.raises(ValueError, match="3 answers for 10"):
            run(tiny_adapted(), config(), non_preferred=OTHER[:3])
        with pytest.raises(ValueError, match="this method needs pairs of answers"):
            run(tiny_adapted(), config(), non_preferred=())


class TestResume:
    def interrupted(self, folder: Path, **options: object) -> torch.nn.Module:
        model = tiny_adapted(dropout=0.1)
        told: list[int] = []
        _, result = run(
            model,
            config(steps=12),
            checkpoint_folder=folder,
            should_stop=lambda: len(told) == 5,
            on_step=lambda metrics: told.append(metrics.step),
            **options,
        )
        assert (result.steps, result.stopped) == (5, True)
        return model

    def test_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        undisturbed = tiny_adapted(dropout=0.1)
        seen, _ = run(undisturbed, config(steps=12))
        self.interrupted(tmp_path)
        resumed = tiny_adapted(dropout=0.1)
        rest, result = run(resumed, config(steps=12), checkpoint_folder=tmp_path)
        assert result.resumed_from == 5
        assert rest == seen[5:]
        for name, tensor in trainable_parameters(undisturbed).items():
            assert torch.equal(trainable_parameters(resumed)[name], tensor)

    def test_the_reference_comes_from_the_checkpoint_and_not_from_where_the_weights_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.interrupted(tmp_path)

        def measured(_: Step) -> torch.Tensor:
            raise AssertionError("the reference was measured again")

        monkeypatch.setattr("worker.trainers.dpo._measure_reference", measured)
        run(tiny_adapted(dropout=0.1), config(steps=12), checkpoint_folder=tmp_path)

    def test_other_answers_are_another_run(self, tmp_path: Path) -> None:
        self.interrupted(tmp_path)
        with pytest.raises(CheckpointMismatch, match="non_preferred_rows"):
            run(
                tiny_adapted(dropout=0.1),
                config(steps=12),
                checkpoint_folder=tmp_path,
                non_preferred=tiny_examples(10, seed=4),
            )

    def test_stopped_before_the_first_step_it_measures_the_reference_then(
        self, tmp_path: Path
    ) -> None:
        run(tiny_adapted(), config(), checkpoint_folder=tmp_path, should_stop=lambda: True)
        seen, result = run(tiny_adapted(), config(), checkpoint_folder=tmp_path)
        assert (result.resumed_from, len(seen)) == (0, 6)
        assert seen[0].loss == pytest.approx(math.log(2), abs=1e-5)
