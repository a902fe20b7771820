"""The words that the loop and the gradient rules share.

A rule answers one question: given the weights and this step's rows, in which direction should the
optimiser go? It may measure the loss anywhere, at the weights or beside them, but it changes nothing:
weights, optimiser and random state belong to the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from worker.data import Batch

# The trained tensors by name: an adapter's, or a whole model's. A gradient has the same names.
Weights = Mapping[str, torch.Tensor]

# A computation on the model: given it and the leaves, gives tensors.
Computation = Callable[[torch.nn.Module, list[torch.Tensor]], list[torch.Tensor]]
# What a pass runs within: given the model and the number of the micro-batch.
Within = Callable[[torch.nn.Module, int], AbstractContextManager[None]]
Draw = Callable[[int | None], Sequence[Batch]]
# Two answers to the same prompts as batches of one length: row i of one belongs to row i of the other.
BatchPair = tuple[Batch, Batch]


def undisturbed(_model: torch.nn.Module, _number: int) -> AbstractContextManager[None]:
    """Run a pass as it is."""
    return nullcontext()


def no_rows(_rows: int | None) -> Sequence[Batch]:
    """Stand where a step has no such rows."""
    raise ValueError("this step has no such rows")


def no_pairs() -> Iterable[BatchPair]:
    """Stand where a run has no pairs."""
    raise ValueError("this method needs pairs of answers")


@dataclass(frozen=True, slots=True)
class Measured:
    """A loss over a whole batch, however many micro-batches it came in, and its gradient.

    `loss` is the mean cross-entropy over all trained tokens of the batch, `token_accuracy` the share of
    them that the model puts first; both scalars, detached. Rules for pairs measure both by pair.
    """

    loss: torch.Tensor
    gradient: Weights
    token_accuracy: torch.Tensor
    tokens: int


class Objective(Protocol):
    """The loss that rules measure."""

    def __call__(
        self,
        weights: Weights,
        batches: Sequence[Batch],
        *,
        noise: str,
        within: Within = undisturbed,
    ) -> Measured:
        """Measure loss and gradient at `weights`, which need not be the model's own.

        Args:
            weights: where to measure; leaves that require a gradient, or plain tensors.
            batches: the micro-batches of one batch.
            noise: names the dropout masks: calls with one name in one step share them.
            within: what each micro-batch's pass runs within, given the model and the micro-batch's number.
        """
        ...

    def apply(
        self, weights: Weights, computations: Sequence[Computation], *, noise: str
    ) -> list[list[torch.Tensor]]:
        """Run computations of a rule's own with `weights` in the model, one after the other.

        Each is given the model and the tensors of `weights` as leaves, and must end with its backward
        passes done. Nothing is added up over ranks.
        """
        ...

    def add_up(
        self, weights: Weights, computations: Sequence[Computation], *, noise: str
    ) -> list[torch.Tensor]:
        """Run computations as `apply` does, and add up what they give, over ranks too.

        Each is one micro-batch's part of a mean, and gives tensors of the same shapes.
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
        draw_refusals: the refusals that belong to the prompts of `draw_harmful`'s rows, in their order; where
            there are any, both sides' micro-batches are padded to one length, (B, T).
        draw_safety: this step's rows of the provider's own, for rules that protect a customer's job.
        pairs: gives `rows` with the answers that are not preferred, for rules that learn from pairs.
        every_pair: gives each pair of the data set once, in order, whatever the step.
        attacker: the tensors of the simulated attacker's own adapter, by name; none without one.
        seed: the run's, for private random streams.
    """

    index: int
    total: int
    weights: Weights
    rows: Sequence[Batch]
    measure: Objective
    draw_harmful: Draw
    draw_refusals: Draw = no_rows
    draw_safety: Draw = no_rows
    pairs: Callable[[], Iterable[BatchPair]] = no_pairs
    every_pair: Callable[[], Iterable[BatchPair]] = no_pairs
    attacker: Weights = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Direction:
    """A rule's answer: the gradient for the optimiser, f at the weights, and what else was seen."""

    gradient: Weights
    measured: Measured
    diagnostics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Rule(Protocol):
    """A method's gradient. Its `repr` says all that decides its numbers."""

    def __call__(self, step: Step) -> Direction:
        """Give the direction of one step."""
        ...


@runtime_checkable
class StatefulRule(Rule, Protocol):
    """A rule that remembers tensors from one step to another: a checkpoint keeps them."""

    def state(self) -> Weights:
        """Give what it remembers."""
        ...

    def restore(self, state: Weights) -> None:
        """Go on from what an earlier run remembered."""
        ...


def global_norm(weights: Weights) -> torch.Tensor:
    """Give one L2 norm over all tensors together: the norm of the tensors' norms."""
    return torch.nn.utils.get_total_norm(list(weights.values()))


def inner_product(one: Weights, other: Weights) -> torch.Tensor:
    """Give the sum over all tensors' entries of the products of two directions with the same names."""
    return torch.stack([(tensor * other[name]).sum() for name, tensor in one.items()]).sum()
