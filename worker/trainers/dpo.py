"""DPO: preferences learnt without a reward model (Rafailov et al., arXiv 2305.18290).

Objective (equation 7 of the paper), the mean over pairs of answers y+ (preferred) and y- to a prompt x:

    L(w) = -log sigmoid(m),     m = beta * ( [log pi(y+|x) - log ref(y+|x)] - [log pi(y-|x) - log ref(y-|x)] )

    G = grad L(w) = mean of  -beta * sigmoid(-m) * ( grad log pi(y+|x) - grad log pi(y-|x) )

log pi(y|x) is a sum over the answer's tokens, the one that ends the turn included. ref is the model as the run
found it. Its log-probabilities are measured once, before the first step, and a checkpoint keeps them: a run that
goes on has them from there, as its weights have moved by then. beta * (log pi - log ref) is an answer's reward.

Deviations: none from the equation. A whole step's pairs are averaged, however they are cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn.functional import logsigmoid

from models.methods import DpoConfig
from worker.trainers import ranks
from worker.trainers.objective import row_log_probabilities
from worker.trainers.step import BatchPair, Direction, Measured, Step, Weights

REFERENCE = "reference"


@dataclass(slots=True)
class Dpo:
    """Follows the gradient of L. One pass over both answers. Stateful: it remembers the reference."""

    config: DpoConfig
    #: log ref(y|x) of every pair of the data set, (N, 2): the preferred answer's, and the other's.
    _reference: torch.Tensor | None = field(default=None, repr=False)

    def __call__(self, step: Step) -> Direction:
        """Give grad L(w)."""
        if self._reference is None:
            self._reference = _measure_reference(step)
        pairs = list(step.pairs())
        device = pairs[0][0].input_ids.device
        count = ranks.total(sum(preferred.rows for preferred, _ in pairs), device)
        tokens = ranks.total(sum(batch.trained_tokens for pair in pairs for batch in pair), device)
        passes = [
            partial(
                _part,
                pair=pair,
                reference=self._reference[list(pair[0].numbers)],
                beta=self.config.beta,
                count=count,
            )
            for pair in pairs
        ]
        loss, right, preferred, other, *gradient = step.measure.add_up(
            step.weights, passes, noise="rows"
        )
        measured = Measured(loss, dict(zip(step.weights, gradient, strict=True)), right, tokens)
        return Direction(
            measured.gradient,
            measured,
            {
                "preference_accuracy": right,
                "reward_margin": preferred - other,
                "preferred_reward": preferred,
                "non_preferred_reward": other,
            },
        )

    def state(self) -> Weights:
        """Give the reference."""
        return {} if self._reference is None else {REFERENCE: self._reference}

    def restore(self, state: Weights) -> None:
        """Take the reference back."""
        self._reference = state.get(REFERENCE)


def _measure_reference(step: Step) -> torch.Tensor:
    """Give log pi(y|x) of every pair at the step's weights, (N, 2), in evaluation mode."""

    def measure(model: torch.nn.Module, _leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        return [log_probabilities(model, step.every_pair())]

    ((measured,),) = step.measure.apply(step.weights, [measure], noise=REFERENCE)
    return measured


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, pairs: Iterable[BatchPair]) -> torch.Tensor:
    """Give log pi(y|x) of every pair, (N, 2): the preferred answer's, and the other's. In evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([_of_both(model, pair) for pair in pairs])
    finally:
        model.train(was_training)


def _of_both(model: torch.nn.Module, pair: BatchPair) -> torch.Tensor:
    """Give log pi(y|x) of both answers, (B, 2)."""
    return torch.stack([row_log_probabilities(model, side) for side in pair], dim=1)


def _part(
    model: torch.nn.Module,
    leaves: list[torch.Tensor],
    *,
    pair: BatchPair,
    reference: torch.Tensor,
    beta: float,
    count: int,
) -> list[torch.Tensor]:
    """Give these pairs' part of the mean loss, accuracy and rewards, and of the gradient."""
    preferred, other = (beta * (_of_both(model, pair) - reference)).unbind(1)
    margins = preferred - other
    loss = -logsigmoid(margins).sum() / count
    gradient = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    seen = (loss, (margins > 0).sum() / count, preferred.sum() / count, other.sum() / count)
    return [*(term.detach() for term in seen), *(part.detach() for part in gradient)]
