"""Vaccine: the shift has the length that it should, reaches what it should, and is nothing at rho 0."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from models.methods import VaccineConfig
from tests.tiny_model import tiny_adapted, tiny_examples
from worker.data import Batch, Example, collate
from worker.lora import trainable_parameters
from worker.trainers.objective import TokenLoss, token_sums
from worker.trainers.sft import Sft
from worker.trainers.step import Direction, Step
from worker.trainers.structure import attention_modules, outputs_shifted
from worker.trainers.vaccine import Vaccine

ROWS = tiny_examples(6, seed=1)


def batches(examples: Sequence[Example] = ROWS, size: int = 6) -> list[Batch]:
    return [collate(examples[i : i + size], 256) for i in range(0, len(examples), size)]


def step(model: torch.nn.Module, rows: Sequence[Batch]) -> Step:
    return Step(0, 1, trainable_parameters(model), rows, TokenLoss(model), lambda _: [])


def direction(model: torch.nn.Module, rho: float, rows: Sequence[Batch] | None = None) -> Direction:
    return Vaccine(VaccineConfig(rho=rho))(step(model, rows or batches()))


def shifts(model: torch.nn.Module, rho: float, rows: Sequence[Batch]) -> list[torch.Tensor]:
    found, _ = Vaccine(VaccineConfig(rho=rho))._shifts(step(model, rows))
    return [shift for parts in found for shift in parts]


@pytest.fixture
def model() -> torch.nn.Module:
    return tiny_adapted(dtype=torch.float64)


class TestShift:
    def test_has_length_rho_over_all_layers_rows_and_positions(
        self, model: torch.nn.Module
    ) -> None:
        found = shifts(model, 2.5, batches())
        assert len(found) == 2
        total = torch.sqrt(sum(shift.square().sum() for shift in found))
        assert float(total) == pytest.approx(2.5, rel=1e-12)

    def test_is_0_at_pads_and_not_elsewhere(self, model: torch.nn.Module) -> None:
        rows = batches()
        pads = rows[0].attention_mask == 0
        assert pads.any()
        for shift in shifts(model, 2.0, rows):
            assert torch.equal(shift[pads], torch.zeros_like(shift[pads]))
            assert shift[~pads].abs().sum() > 0

    def test_is_the_slope_by_the_attention_outputs(self, model: torch.nn.Module) -> None:
        rows = batches()
        found = shifts(model, 1.0, rows)
        modules = attention_modules(model)

        def loss_at(shift: Sequence[torch.Tensor]) -> float:
            with torch.no_grad(), outputs_shifted(modules, shift):
                total, _ = token_sums(model, rows[0])
            return float(total) / rows[0].trained_tokens

        # To first order the loss rises by rho * ||v||, and along no other direction by more.
        tiny = 1e-6
        rise = loss_at([tiny * shift for shift in found]) - loss_at([0 * shift for shift in found])
        norm = float(direction(model, 1.0).diagnostics["hidden_grad_norm"])
        assert rise == pytest.approx(tiny * norm, rel=1e-4)
        generator = torch.Generator().manual_seed(0)
        other = [torch.randn(s.shape, generator=generator, dtype=s.dtype) for s in found]
        length = torch.sqrt(sum(s.square().sum() for s in other))
        assert (
            loss_at([tiny * s / length for s in other]) - loss_at([0 * s for s in found])
            < 0.5 * rise
        )

    def test_reaches_the_lowest_layer_even_where_nothing_below_is_trained(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        for name, parameter in model.named_parameters():
            if ".layers.0." in name:
                parameter.requires_grad_(False)
        assert all(shift.abs().sum() > 0 for shift in shifts(model, 1.0, batches()))


class TestDirection:
    def test_rho_0_is_sft_bit_for_bit(self, model: torch.nn.Module) -> None:
        plain = Sft()(step(model, batches()))
        found = direction(model, 0.0)
        assert all(torch.equal(found.gradient[n], plain.gradient[n]) for n in plain.gradient)

    def test_is_the_gradient_with_the_shift_held_fixed(self, model: torch.nn.Module) -> None:
        rows = batches()
        held = [shift.detach() for shift in shifts(model, 3.0, rows)]
        leaves = trainable_parameters(model)
        with outputs_shifted(attention_modules(model), held):
            loss = token_sums(model, rows[0])[0] / rows[0].trained_tokens
            wanted = torch.autograd.grad(loss, list(leaves.values()))
        found = direction(model, 3.0)
        assert float(found.measured.loss) == pytest.approx(float(loss), rel=1e-12)
        for name, expected in zip(leaves, wanted, strict=True):
            torch.testing.assert_close(found.gradient[name], expected, rtol=1e-10, atol=1e-13)

    def test_micro_batches_share_one_norm(self, model: torch.nn.Module) -> None:
        whole, cut = direction(model, 2.0), direction(model, 2.0, batches(size=2))
        for name, slope in whole.gradient.items():
            torch.testing.assert_close(cut.gradient[name], slope, rtol=1e-9, atol=1e-12)

    def test_shares_dropout_masks_between_its_passes(self) -> None:
        model = tiny_adapted(dtype=torch.float64, dropout=0.5).train()
        assert direction(model, 1.0).measured.loss == direction(model, 1.0).measured.loss

    def test_leaves_no_hook(self, model: torch.nn.Module) -> None:
        direction(model, 1.0)
        assert not any(module._forward_hooks for module in model.modules())
