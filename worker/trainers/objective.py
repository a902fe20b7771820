"""Mean cross-entropy over trained tokens, and its gradient, at any weights.

The weights are handed to the model for the length of one call (`torch.func.functional_call`), so to
measure beside the current point is to pass other tensors: nothing is added to the parameters and taken
off again, which would not give the same numbers back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from worker.data import IGNORED, Batch, Example, collate
from worker.row_order import private_seed
from worker.trainers import ranks
from worker.trainers.step import (
    Computation,
    Measured,
    Objective,
    Weights,
    Within,
    undisturbed,
)


class TokenLoss:
    """The loss of one model: f on alignment rows, h on harmful rows.

    f = sum of the cross-entropies of all trained tokens / their number, over the whole batch: micro-batches
    are weighted by their tokens, so cutting a batch differently does not change the loss.
    """

    def __init__(self, model: torch.nn.Module, *, seed: int = 0) -> None:
        """Bind the loss to a model; `seed` decides the dropout masks."""
        self._pass = _Pass(model)
        self._own = dict(model.named_parameters())
        self._seed = seed

    def at(self, step: int) -> Objective:
        """Give the loss of one step: each has dropout masks of its own."""
        return _AtStep(self, step)

    def __call__(
        self,
        weights: Weights,
        batches: Sequence[Batch],
        *,
        noise: str,
        within: Within = undisturbed,
        step: int = 0,
    ) -> Measured:
        """Measure at `weights`; see `Objective`."""
        if not batches:
            raise ValueError("no batches to measure on")
        tokens = ranks.total(
            sum(batch.trained_tokens for batch in batches), batches[0].input_ids.device
        )
        passes = [
            partial(_loss_and_gradient, batch=batch, tokens=tokens, within=within, number=number)
            for number, batch in enumerate(batches)
        ]
        loss, correct, *gradient = self.add_up(weights, passes, noise=noise, step=step)
        return Measured(loss, dict(zip(weights, gradient, strict=True)), correct / tokens, tokens)

    def apply(
        self,
        weights: Weights,
        computations: Sequence[Computation],
        *,
        noise: str,
        step: int = 0,
    ) -> list[list[torch.Tensor]]:
        """Run computations with `weights` in the model; see `Objective`."""
        leaves = {
            name: tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            for name, tensor in weights.items()
        }
        # At the model's own weights there is nothing to hand in, and handing in has a price.
        is_here = all(leaf is self._own[name] for name, leaf in leaves.items())
        handed = {} if is_here else {f"model.{name}": leaf for name, leaf in leaves.items()}
        given = list(leaves.values())
        device = given[0].device
        with _private_noise(private_seed(self._seed, noise, step, *_of_rank()), device):
            return [
                torch.func.functional_call(self._pass, handed, (computation, given))
                if handed
                else self._pass(computation, given)
                for computation in computations
            ]

    def add_up(
        self,
        weights: Weights,
        computations: Sequence[Computation],
        *,
        noise: str,
        step: int = 0,
    ) -> list[torch.Tensor]:
        """Run computations and add up what they give; see `Objective`."""
        totals: list[torch.Tensor] = []

        def add(
            computation: Computation, model: torch.nn.Module, leaves: list[torch.Tensor]
        ) -> list[torch.Tensor]:
            # Added at once: the gradients of all micro-batches together would not fit.
            parts = computation(model, leaves)
            if not totals:
                totals.extend(parts)
            else:
                for total, part in zip(totals, parts, strict=True):
                    total.add_(part)
            return []

        self.apply(weights, [partial(add, one) for one in computations], noise=noise, step=step)
        ranks.add_up(totals)
        return totals


@dataclass(frozen=True, slots=True)
class _AtStep:
    loss: TokenLoss
    step: int

    def __call__(
        self,
        weights: Weights,
        batches: Sequence[Batch],
        *,
        noise: str,
        within: Within = undisturbed,
    ) -> Measured:
        return self.loss(weights, batches, noise=noise, within=within, step=self.step)

    def apply(
        self, weights: Weights, computations: Sequence[Computation], *, noise: str
    ) -> list[list[torch.Tensor]]:
        return self.loss.apply(weights, computations, noise=noise, step=self.step)

    def add_up(
        self, weights: Weights, computations: Sequence[Computation], *, noise: str
    ) -> list[torch.Tensor]:
        return self.loss.add_up(weights, computations, noise=noise, step=self.step)


class _Pass(torch.nn.Module):
    """Holds the model while a computation runs on it.

    The backward pass is inside, while the handed-in weights are still in place: under gradient
    checkpointing it runs the forward pass again, which would otherwise read the model's own.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, computation: Computation, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run the computation."""
        with torch.enable_grad():
            return computation(self.model, leaves)


def _loss_and_gradient(
    model: torch.nn.Module,
    leaves: list[torch.Tensor],
    *,
    batch: Batch,
    tokens: int,
    within: Within,
    number: int,
) -> list[torch.Tensor]:
    """Give this batch's part of the mean loss, its tokens put first, and the part's gradient."""
    with within(model, number):
        loss, correct = token_sums(model, batch)
        share = loss / tokens
        # An expert that no token of the batch was sent to has no gradient: 0, not an error.
        gradient = torch.autograd.grad(share, leaves, allow_unused=True, materialize_grads=True)
    return [share.detach(), correct, *(part.detach() for part in gradient)]


def token_sums(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the cross-entropies of a batch's trained tokens, and count those that the model puts first."""
    scores, targets = _trained_scores(model, batch)
    loss = cross_entropy(scores, targets, reduction="sum")
    return loss, (scores.detach().argmax(-1) == targets).sum()


def row_log_probabilities(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Give log pi(y | x) for each row of a batch, (B,): the sum over its trained tokens."""
    scores, targets = _trained_scores(model, batch)
    losses = cross_entropy(scores, targets, reduction="none")  # (N,), row after row
    return -torch.stack([part.sum() for part in losses.split(batch.trained_tokens_of_rows)])


def _trained_scores(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the logits that predict the trained tokens, (N, V), and these tokens, (N,), row after row."""
    logits = model(**batch.model_inputs, use_cache=False).logits  # (B, T, V)
    targets = batch.labels[:, 1:]  # (B, T - 1): position t predicts token t + 1
    counted = targets != IGNORED
    # Only the trained positions go on, (N, V), to keep the widest tensors of the pass small.
    scores, targets = logits[:, :-1][counted], targets[counted]
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    return scores, targets


def mean_token_loss(
    model: torch.nn.Module, examples: Sequence[Example], pad_id: int, *, batch_size: int = 32
) -> float:
    """Give the mean token cross-entropy over `examples` in evaluation mode, without a gradient.

    On held-out harmful rows this is the canary: it falls long before a model complies in its answers.
    """
    return token_means(model, examples, pad_id, batch_size=batch_size)[0]


@torch.no_grad()
def token_means(
    model: torch.nn.Module, examples: Sequence[Example], pad_id: int, *, batch_size: int = 32
) -> tuple[float, float]:
    """Give the mean cross-entropy of the trained tokens of `examples`, and the share that is put first.

    In evaluation mode, without a gradient.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, correct, tokens = 0.0, 0, 0
    try:
        for first in range(0, len(examples), batch_size):
            batch = collate(examples[first : first + batch_size], pad_id, device)
            loss, hits = token_sums(model, batch)
            total += float(loss)
            correct += int(hits)
            tokens += batch.trained_tokens
    finally:
        model.train(was_training)
    return total / tokens, correct / tokens


def _of_rank() -> tuple[int, ...]:
    # Ranks see different rows and want different masks; a single one has the plain seed.
    return (ranks.rank(),) if ranks.rank() else ()


@contextmanager
def _private_noise(seed: int, device: torch.device) -> Iterator[None]:
    # Dropout's masks are a function of (seed, name, step): nobody else's random state moves, two passes
    # can share their masks, and a resumed run needs no random state.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
