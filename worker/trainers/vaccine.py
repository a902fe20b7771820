"""Vaccine: alignment that withstands a shift of the hidden embeddings (Huang et al., arXiv 2402.01109).

    min_w  max_{||eps|| <= rho}  f(w; hidden + eps)

The inner maximum is taken to first order (section 4 of the paper): with v_l the gradient of f by the output of
decoder layer l's attention module,

    eps_l = rho * v_l / sqrt( sum_l ||v_l||^2 )          one norm over layers, rows and positions together
    G     = grad f(w; attention outputs + eps)           eps held fixed

The total shift of a step has length rho exactly, so a row's share shrinks as the batch grows: rho belongs to a
batch size. Both passes see the same rows and the same dropout masks. Under accumulation the norm runs over all
micro-batches of the step, whose loss is the mean over all its tokens. The reported loss is the shifted one.
Where the authors' code differs: it adds 1e-7 to the norm, and computes the first pass's gradient by the weights
only to throw it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch

from models.methods import VaccineConfig
from worker.data import Batch
from worker.trainers import ranks
from worker.trainers.objective import token_sums
from worker.trainers.sft import Sft
from worker.trainers.step import Direction, Step
from worker.trainers.structure import attention_modules, outputs_seen, outputs_shifted


@dataclass(frozen=True, slots=True)
class Vaccine:
    """SFT at shifted attention outputs. Two passes; one where rho is 0."""

    config: VaccineConfig

    def __call__(self, step: Step) -> Direction:
        """Give grad f(w; hidden + eps)."""
        if self.config.rho == 0:
            return Sft()(step)
        shifts, norm = self._shifts(step)

        def shifted(model: torch.nn.Module, number: int) -> AbstractContextManager[None]:
            return outputs_shifted(attention_modules(model), shifts[number])

        measured = step.measure(step.weights, step.rows, noise="rows", within=shifted)
        return Direction(measured.gradient, measured, {"hidden_grad_norm": norm})

    def _shifts(self, step: Step) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
        """Give eps for every micro-batch and layer, each (B, T, D), and the norm of v."""
        tokens = ranks.total(
            sum(batch.trained_tokens for batch in step.rows), step.rows[0].input_ids.device
        )
        slopes = step.measure.apply(
            step.weights,
            [partial(_slopes, batch=batch, tokens=tokens) for batch in step.rows],
            noise="rows",
        )
        square = torch.stack([v.square().sum() for parts in slopes for v in parts]).sum()
        ranks.add_up([square])
        norm = square.sqrt()
        length = torch.where(norm > 0, norm, torch.ones_like(norm))
        return [[self.config.rho * (v / length) for v in parts] for parts in slopes], norm


def _slopes(
    model: torch.nn.Module, _leaves: Sequence[torch.Tensor], *, batch: Batch, tokens: int
) -> list[torch.Tensor]:
    """Give v_l = d f / d (attention output of layer l) for every layer, each (B, T, D)."""
    with outputs_seen(attention_modules(model), through=True) as points:
        loss, _ = token_sums(model, batch)
        return list(torch.autograd.grad(loss / tokens, points))
