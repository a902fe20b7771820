"""The validation rows, measured while a customer's job trains.

Often on a few of them, drawn by the step, as the curve's points; at the end of an epoch on all of them. It
only looks: a run with validation rows ends with the weights of the same run without.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from models.hyperparameters import TrainConfig
from worker.data import Example
from worker.row_order import rows_of_step
from worker.trainers.objective import token_means

# More rows would make an epoch's end longer than the epoch.
MAX_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Validation:
    """Call it with the number of each step, counted from 1.

    Attributes:
        model: what is trained.
        examples: the validation file's rows; there may be none.
        config: the run's; its batch is how many rows a point of the curve rests on.
        pad_id: fills the ends of short rows.
        every: steps between two points; the first and the last step have one as well.
        epoch_ends: the steps after which all rows are measured.
    """

    model: torch.nn.Module
    examples: Sequence[Example]
    config: TrainConfig
    pad_id: int
    every: int
    epoch_ends: Collection[int]

    def __call__(self, step: int) -> dict[str, float]:
        """Give the losses (nats) and accuracies (0 to 1) that are due at this step, by their wire names."""
        measured: dict[str, float] = {}
        if not self.examples:
            return measured
        is_end = step in self.epoch_ends
        if is_end or step in (1, self.config.steps) or step % self.every == 0:
            measured.update(self._means("valid", self._drawn(step)))
        if is_end:
            measured.update(self._means("full_valid", self.examples[:MAX_ROWS]))
        return measured

    def _drawn(self, step: int) -> list[Example]:
        size = min(self.config.batch_size, len(self.examples))
        rows = rows_of_step(len(self.examples), size, self.config.seed, step, "validation")
        return [self.examples[row] for row in rows]

    def _means(self, prefix: str, examples: Sequence[Example]) -> dict[str, float]:
        loss, accuracy = token_means(self.model, examples, self.pad_id)
        if not math.isfinite(loss):
            # No database keeps such a number; the next step finds out that training has diverged.
            return {}
        return {f"{prefix}_loss": loss, f"{prefix}_mean_token_accuracy": accuracy}
