"""Lisa's turns, anchors and pull, against a table worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.hyperparameters import TrainConfig
from models.methods import LisaConfig
from tests.tiny_model import tiny_adapted, tiny_examples
from worker.lora import trainable_parameters
from worker.trainers.lisa import Lisa
from worker.trainers.loop import train
from worker.trainers.sft import Sft
from worker.trainers.step import Direction, Measured, Step, Weights


class Plain:
    """A loss whose gradient is 0, told apart by the rows that were asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def __call__(self, weights: Weights, batches: object, *, noise: str) -> Measured:
        self.asked.append(batches)
        zero = {name: torch.zeros_like(w) for name, w in weights.items()}
        return Measured(torch.zeros(()), zero, torch.zeros(()), 1)


def follow(rule: Lisa, steps: int) -> tuple[list[object], list[float]]:
    """Take steps at weights 0, 1, 2 ...; give the rows that were asked and the gradients."""
    loss, slopes = Plain(), []
    for index in range(steps):
        weights = {"w": torch.tensor([float(index)])}
        found: Direction = rule(
            Step(
                index,
                steps,
                weights,
                ["user"],
                loss,
                lambda _: [],
                draw_safety=lambda _: ["safety"],
            )
        )
        slopes.append(float(found.gradient["w"]))
    return loss.asked, slopes


class TestTurns:
    def test_alternate_from_an_alignment_turn_on(self) -> None:
        asked, _ = follow(Lisa(LisaConfig(alignment_steps=2, user_steps=3)), 12)
        turn = [["safety"]] * 2 + [["user"]] * 3
        assert asked == (turn * 3)[:12]

    def test_the_papers_lengths(self) -> None:
        asked, _ = follow(Lisa(LisaConfig()), 1100)
        assert asked == [["safety"]] * 100 + [["user"]] * 900 + [["safety"]] * 100


class TestPull:
    def test_is_rho_times_the_way_from_where_the_other_turn_ended(self) -> None:
        rule = Lisa(LisaConfig(rho=2, alignment_steps=2, user_steps=3, warmup_ratio=0))
        _, slopes = follow(rule, 8)
        # Step 0 does not pull (0 <= 0). Turn 1 (steps 0, 1) pulls to the start, 0. Turn 2 (2 to 4) pulls to
        # w = 2, where turn 1 ended; turn 3 (5, 6) to w = 5, where turn 2 did; turn 4 (7) to w = 7.
        assert slopes == [0, 2 * 1, 2 * 0, 2 * 1, 2 * 2, 2 * 0, 2 * 1, 2 * 0]

    def test_waits_for_a_tenth_of_the_steps(self) -> None:
        rule = Lisa(LisaConfig(rho=1, alignment_steps=50, user_steps=50))
        _, slopes = follow(rule, 50)
        assert slopes == [0.0] * 6 + [float(index) for index in range(6, 50)]


class TestWithinTheLoop:
    CONFIG = TrainConfig(steps=12, batch_size=4, learning_rate=1e-2)

    def weights(self, rule: Lisa | Sft, **options: object) -> dict[str, torch.Tensor]:
        model = tiny_adapted()
        train(
            model,
            rule,
            tiny_examples(10, seed=1),
            self.CONFIG,
            pad_id=256,
            safety=tiny_examples(6, seed=5),
            **options,
        )
        return trainable_parameters(model)

    def test_without_alignment_turns_and_pull_it_is_sft(self) -> None:
        lisa = self.weights(Lisa(LisaConfig(alignment_steps=0, rho=0)))
        plain = self.weights(Sft())
        assert all(torch.equal(lisa[name], plain[name]) for name in plain)

    @pytest.mark.parametrize("stop_after", [3, 7])
    def test_goes_on_from_a_checkpoint_with_its_anchors(
        self, tmp_path: Path, stop_after: int
    ) -> None:
        config = LisaConfig(rho=3, alignment_steps=2, user_steps=3)
        undisturbed = self.weights(Lisa(config))
        seen: list[int] = []
        self.weights(
            Lisa(config),
            checkpoint_folder=tmp_path,
            on_step=lambda metrics: seen.append(metrics.step),
            should_stop=lambda: len(seen) == stop_after,
        )
        resumed = self.weights(Lisa(config), checkpoint_folder=tmp_path)
        assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
