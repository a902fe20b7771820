"""The validation rows, measured while a customer's job trains.

Often on a few of them, drawn by the step, as the curve's points; at the end of an epoch on all of them. It
only looks: a run with validation rows ends with the weights of the same run without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from models.hyperparameters import TrainConfig
from worker.data import Encoded, Example, collate
from worker.row_order import rows_of_step
from worker.trainers.dpo import log_probabilities
from worker.trainers.objective import token_means
from worker.trainers.step import BatchPair

# More rows would make an epoch's end longer than the epoch.
MAX_ROWS = 5_000
BATCH_PAIRS = 16

#: Gives the mean loss (nats) and accuracy (0 to 1) on rows, by their numbers.
Score = Callable[[Sequence[int]], tuple[float, float]]


def score_rows(model: torch.nn.Module, examples: Sequence[Example], pad_id: int) -> Score:
    """Score conversations: the mean over their trained tokens."""
    return lambda numbers: token_means(model, [examples[n] for n in numbers], pad_id)


def score_pairs(model: torch.nn.Module, pairs: Encoded, pad_id: int, *, beta: float) -> Score:
    """Score pairs as DPO does: the mean of its loss, and the share of pairs whose margin is above 0.

    Call it before the first step: the model as it is now is the reference. A run that goes on from a checkpoint
    calls it before that is read, so the reference is the same one.
    """

    def batches(numbers: Sequence[int]) -> Iterator[BatchPair]:
        device = next(model.parameters()).device
        for first in range(0, len(numbers), BATCH_PAIRS):
            preferred, other = (
                collate([side[n] for n in numbers[first : first + BATCH_PAIRS]], pad_id, device)
                for side in (pairs.examples, pairs.non_preferred)
            )
            yield preferred, other

    count = min(len(pairs.examples), MAX_ROWS)
    reference = log_probabilities(model, batches(range(count)))

    def score(numbers: Sequence[int]) -> tuple[float, float]:
        gained = log_probabilities(model, batches(numbers)) - reference[list(numbers)]
        margins = beta * (gained[:, 0] - gained[:, 1])
        return float(-logsigmoid(margins).mean()), float((margins > 0).double().mean())

    return score


@dataclass(frozen=True, slots=True)
class Validation:
    """Call it with the number of each step, counted from 1.

    Attributes:
        score: measures rows of the validation file.
        rows: how many there are; there may be none. The first 5,000 are measured.
        config: the run's; its batch is how many rows a point of the curve rests on.
        every: steps between two points; the first and the last step have one as well.
        epoch_ends: the steps after which all rows are measured.
    """

    score: Score
    rows: int
    config: TrainConfig
    every: int
    epoch_ends: Collection[int]

    @property
    def _count(self) -> int:
        return min(self.rows, MAX_ROWS)

    def __call__(self, step: int) -> dict[str, float]:
        """Give the losses and accuracies that are due at this step, by their wire names."""
        measured: dict[str, float] = {}
        if not self.rows:
            return measured
        is_end = step in self.epoch_ends
        if is_end or step in (1, self.config.steps) or step % self.every == 0:
            measured.update(self._means("valid", self._drawn(step)))
        if is_end:
            measured.update(self._means("full_valid", range(self._count)))
        return measured

    def _drawn(self, step: int) -> list[int]:
        size = min(self.config.batch_size, self._count)
        return rows_of_step(self._count, size, self.config.seed, step, "validation")

    def _means(self, prefix: str, numbers: Sequence[int]) -> dict[str, float]:
        loss, accuracy = self.score(numbers)
        if not math.isfinite(loss):
            # No database keeps such a number; the next step finds out that training has diverged.
            return {}
        return {f"{prefix}_loss": loss, f"{prefix}_mean_token_accuracy": accuracy}
