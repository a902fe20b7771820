"""RepNoise against naive loops, hand-worked masks, and what must follow from its equation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch.nn.functional import log_softmax

from models.methods import RepNoiseConfig
from tests.tiny_model import tiny_adapted
from worker.data import IGNORED, Batch, Example, collate
from worker.lora import trainable_parameters
from worker.trainers.objective import TokenLoss
from worker.trainers.repnoise import RepNoise, masked_cross_entropy, squared_mmd
from worker.trainers.step import Direction, Step

PROMPTS = [(7, 8, 9), (7, 11, 12, 13)]
HARMFUL = [
    Example((*prompt, *answer), (IGNORED,) * len(prompt) + answer)
    for prompt, answer in zip(PROMPTS, [(20, 21, 22, 23), (24, 25, 26)], strict=True)
]
REFUSALS = [
    Example((*prompt, *answer), (IGNORED,) * len(prompt) + answer)
    for prompt, answer in zip(PROMPTS, [(30, 31), (30, 32)], strict=True)
]


def batches(examples: Sequence[Example], size: int = 2) -> list[Batch]:
    return [collate(examples[i : i + size], 256) for i in range(0, len(examples), size)]


def direction(
    model: torch.nn.Module,
    *,
    size: int = 2,
    rows: Sequence[Example] = REFUSALS,
    **config: object,
) -> Direction:
    rule = RepNoise(RepNoiseConfig.model_validate(config))
    return rule(
        Step(
            0,
            1,
            trainable_parameters(model),
            batches(rows, size),
            TokenLoss(model),
            draw_harmful=lambda _: batches(HARMFUL, size),
            draw_refusals=lambda _: batches(REFUSALS, size),
        )
    )


@pytest.fixture
def model() -> torch.nn.Module:
    return tiny_adapted(dtype=torch.float64)


class TestSquaredMmd:
    def rows(self, seed: int, count: int = 4) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 5, generator=generator, dtype=torch.float64)

    def test_is_0_between_rows_and_themselves(self) -> None:
        assert float(squared_mmd(self.rows(0), self.rows(0))) == pytest.approx(0, abs=1e-12)

    def test_is_symmetric_and_positive(self) -> None:
        x, y = self.rows(0), self.rows(1) + 1
        assert float(squared_mmd(x, y)) == pytest.approx(float(squared_mmd(y, x)), rel=1e-12)
        assert float(squared_mmd(x, y)) > 0

    def test_equals_a_naive_loop(self) -> None:
        x, y = self.rows(0), self.rows(1)
        both = [*x, *y]
        pairs = [(i, j) for i in range(8) for j in range(8)]
        distance = {(i, j): float(((both[i] - both[j]) ** 2).sum()) for i, j in pairs}
        width = sum(distance.values()) / (8 * 7) / 4

        def kernel(i: int, j: int) -> float:
            return sum(math.exp(-distance[i, j] / (width * 2**k)) for k in range(5))

        wanted = sum(
            kernel(i, j) + kernel(i + 4, j + 4) - kernel(i, j + 4) - kernel(i + 4, j)
            for i in range(4)
            for j in range(4)
        )
        assert float(squared_mmd(x, y)) == pytest.approx(wanted / 16, rel=1e-12)

    def test_equal_rows_are_no_division_by_0(self) -> None:
        x = torch.ones(3, 2, requires_grad=True)
        distance = squared_mmd(x, torch.ones(3, 2))
        distance.backward()
        assert float(distance.detach()) == 0
        assert torch.isfinite(x.grad).all()


class TestMaskedCrossEntropy:
    LOGITS = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    IDS = torch.tensor([[3, 1, 0, 5]])
    MASK = torch.tensor([[False, True, True, True]])

    def cost(self, position: int, token: int) -> float:
        return -float(log_softmax(self.LOGITS[0, position], -1)[token])

    def test_counts_every_marked_token(self) -> None:
        wanted = (self.cost(0, 1) + self.cost(1, 0) + self.cost(2, 5)) / 3
        assert float(masked_cross_entropy(self.LOGITS, self.IDS, self.MASK)) == pytest.approx(
            wanted
        )

    def test_reference_teaches_nothing_of_first_tokens_and_of_id_0(self) -> None:
        # Position 0 is unmarked: its logits are zeroed, so token 1 costs log V; token 0 is ignored.
        wanted = (math.log(6) + self.cost(2, 5)) / 2
        found = masked_cross_entropy(self.LOGITS, self.IDS, self.MASK, "reference")
        assert float(found) == pytest.approx(wanted)


class TestDirection:
    def test_alpha_and_beta_0_is_the_cross_entropy_of_the_refusals(
        self, model: torch.nn.Module
    ) -> None:
        found = direction(model, alpha=0, beta=0)
        plain = TokenLoss(model)(trainable_parameters(model), batches(REFUSALS), noise="rows")
        assert float(found.measured.loss) == pytest.approx(float(plain.loss), rel=1e-12)
        for name, slope in plain.gradient.items():
            torch.testing.assert_close(found.gradient[name], slope, rtol=1e-9, atol=1e-12)

    def test_ascent_raises_the_harmful_loss(self, model: torch.nn.Module) -> None:
        weights = trainable_parameters(model)
        found = direction(model, alpha=1, beta=0)
        plain = direction(model, alpha=0, beta=0)
        moved = {
            name: w - 1e-3 * (found.gradient[name] - plain.gradient[name])
            for name, w in weights.items()
        }
        loss = TokenLoss(model)
        before = loss(weights, batches(HARMFUL), noise="harmful").loss
        after = loss(moved, batches(HARMFUL), noise="harmful").loss
        assert after > before

    def test_noise_term_brings_the_layers_nearer_to_noise(self, model: torch.nn.Module) -> None:
        fixed = torch.randn(
            2, 7, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        weights = trainable_parameters(model)

        def at(point: dict[str, torch.Tensor], beta: float) -> Direction:
            rule = RepNoise(
                RepNoiseConfig(alpha=0, beta=beta), gaussian=lambda x: fixed[:, : x.shape[1]]
            )
            return rule(
                Step(
                    0,
                    1,
                    point,
                    batches(REFUSALS),
                    TokenLoss(model),
                    draw_harmful=lambda _: batches(HARMFUL),
                    draw_refusals=lambda _: batches(REFUSALS),
                )
            )

        start, plain = at(weights, 1), at(weights, 0)
        moved = {
            name: w - 1e-3 * (start.gradient[name] - plain.gradient[name])
            for name, w in weights.items()
        }
        assert at(moved, 1).diagnostics["noise_distance"] < start.diagnostics["noise_distance"]

    def test_same_step_draws_the_same_noise(self, model: torch.nn.Module) -> None:
        first, second = direction(model), direction(model)
        assert all(torch.equal(first.gradient[n], second.gradient[n]) for n in first.gradient)

    def test_unpaired_takes_the_steps_own_rows(self, model: torch.nn.Module) -> None:
        rows = [Example((1, 2, 3), (IGNORED, 2, 3)), Example((4, 5, 6), (IGNORED, 5, 6))]
        found = direction(model, paired=False, rows=rows)
        other = direction(model, paired=True, rows=rows)
        assert float(found.measured.loss) != float(other.measured.loss)

    def test_a_token_of_id_0_beyond_the_other_side_counts(self, model: torch.nn.Module) -> None:
        rows = [Example((1, 2, 0, 0), (IGNORED, 2, 0, 0))]
        longer = direction(model, paired=False, rows=rows, alpha=0, beta=0, size=1)
        shorter = direction(
            model, paired=False, rows=[Example((1, 2), (IGNORED, 2))], alpha=0, beta=0, size=1
        )
        assert float(longer.measured.loss) != pytest.approx(float(shorter.measured.loss))

    def test_pads_never_count(self, model: torch.nn.Module) -> None:
        # One by one there are no pads; the cross-entropies are weighted by rows then.
        cut = direction(model, size=1, alpha=0, beta=0)
        alone = [
            TokenLoss(model)(trainable_parameters(model), [batch], noise="rows").loss
            for batch in batches(REFUSALS, 1)
        ]
        assert float(cut.measured.loss) == pytest.approx(float(sum(alone)) / 2, rel=1e-12)
