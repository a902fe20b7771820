"""Mean cross-entropy over trained tokens, and its gradient, at any weights.

The weights are handed to the model for the length of one call (`torch.func.functional_call`), so to
measure beside the current point is to pass other tensors: nothing is added to the parameters and taken
off again, which would not give the same numbers back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy

from worker.data import IGNORED, Batch, Example, collate
from worker.row_order import private_seed
from worker.trainers import ranks
from worker.trainers.step import Measured, Weights


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

    def __call__(
        self, weights: Weights, batches: Sequence[Batch], *, noise: str, step: int = 0
    ) -> Measured:
        """Measure at `weights`; see `Objective`. Each step has dropout masks of its own."""
        if not batches:
            raise ValueError("no batches to measure on")
        device = batches[0].input_ids.device
        tokens = ranks.total(sum(batch.trained_tokens for batch in batches), device)
        leaves = {
            name: tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            for name, tensor in weights.items()
        }
        # At the model's own weights there is nothing to hand in, and handing in has a price.
        is_here = all(leaf is self._own[name] for name, leaf in leaves.items())
        handed = {} if is_here else {f"model.{name}": leaf for name, leaf in leaves.items()}
        totals: list[torch.Tensor] = []
        with _private_noise(private_seed(self._seed, noise, step, *_of_rank()), device):
            for batch in batches:
                given = (batch, list(leaves.values()), tokens)
                parts = (
                    torch.func.functional_call(self._pass, handed, given)
                    if handed
                    else self._pass(*given)
                )
                if not totals:
                    totals = parts
                else:
                    for total, part in zip(totals, parts, strict=True):
                        total.add_(part)
        ranks.add_up(totals)
        loss, correct, *gradient = totals
        return Measured(loss, dict(zip(leaves, gradient, strict=True)), correct / tokens, tokens)


class _Pass(torch.nn.Module):
    """One forward and backward pass.

    The backward pass is inside, while the handed-in weights are still in place: under gradient
    checkpointing it runs the forward pass again, which would otherwise read the model's own.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, leaves: list[torch.Tensor], tokens: int) -> list[torch.Tensor]:
        """Give this batch's part of the mean loss, its tokens put first, and the part's gradient."""
        with torch.enable_grad():
            loss, correct = token_sums(self.model, batch)
            share = loss / tokens
            # An expert that no token of the batch was sent to has no gradient: 0, not an error.
            gradient = torch.autograd.grad(share, leaves, allow_unused=True, materialize_grads=True)
        return [share.detach(), correct, *(part.detach() for part in gradient)]


def token_sums(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the cross-entropies of a batch's trained tokens, and count those that the model puts first."""
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits  # (B, T, V)
    targets = batch.labels[:, 1:]  # (B, T - 1): position t predicts token t + 1
    counted = targets != IGNORED
    # Only the trained positions go on, (N, V), to keep the widest tensors of the pass small.
    scores, targets = logits[:, :-1][counted], targets[counted]
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    loss = cross_entropy(scores, targets, reduction="sum")
    return loss, (scores.detach().argmax(-1) == targets).sum()


@torch.no_grad()
def mean_token_loss(
    model: torch.nn.Module, examples: Sequence[Example], pad_id: int, *, batch_size: int = 32
) -> float:
    """Give the mean token cross-entropy over `examples` in evaluation mode, without a gradient.

    On held-out harmful rows this is the canary: it falls long before a model complies in its answers.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    try:
        for first in range(0, len(examples), batch_size):
            batch = collate(examples[first : first + batch_size], pad_id, device)
            total += float(token_sums(model, batch)[0])
            tokens += batch.trained_tokens
    finally:
        model.train(was_training)
    return total / tokens


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
