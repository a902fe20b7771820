"""The words that the loop and the gradient rules share.

A rule answers one question: given the weights and this step's rows, in which direction should the
optimiser go? It may measure the loss anywhere, at the weights or beside them, but it changes nothing:
weights, optimiser and random state belong to the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from worker.data import Batch

# The trained tensors by name: an adapter's, or a whole model's. A gradient has the same names.
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Measured:
    """A loss over a whole batch, however many micro-batches it came in, and its gradient.

    `loss` is the mean cross-entropy over all trained tokens of the batch, `token_accuracy` the share of
    them that the model puts first; both scalars, detached.
    """

    loss: torch.Tensor
    gradient: Weights
    token_accuracy: torch.Tensor
    tokens: int


class Objective(Protocol):
    """The loss that rules measure."""

    def __call__(self, weights: Weights, batches: Sequence[Batch], *, noise: str) -> Measured:
        """Measure loss and gradient at `weights`, which need not be the model's own.

        Args:
            weights: where to measure; leaves that require a gradient, or plain tensors.
            batches: the micro-batches of one batch.
            noise: names the dropout masks: calls with one name in one step share them.
        """
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What a rule may use in one optimiser step.

    Attributes:
        index: the step, counted from 0.
        total: how many steps the run has.
        weights: the current weights, not to be changed.
        rows: this step's rows of the training data, as micro-batches.
        measure: the loss.
        draw_harmful: gives this step's harmful rows as micro-batches, the same ones however often it is
            asked; its argument is how many rows, none meaning as many as a step has training rows.
            A rule that does not ask costs nothing and moves no random stream.
    """

    index: int
    total: int
    weights: Weights
    rows: Sequence[Batch]
    measure: Objective
    draw_harmful: Callable[[int | None], Sequence[Batch]]


@dataclass(frozen=True, slots=True)
class Direction:
    """A rule's answer: the gradient for the optimiser, f at the weights, and what else was seen."""

    gradient: Weights
    measured: Measured
    diagnostics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Rule(Protocol):
    """A method's gradient."""

    def __call__(self, step: Step) -> Direction:
        """Give the direction of one step."""
        ...


def global_norm(weights: Weights) -> torch.Tensor:
    """Give one L2 norm over all tensors together: the norm of the tensors' norms."""
    return torch.nn.utils.get_total_norm(list(weights.values()))
