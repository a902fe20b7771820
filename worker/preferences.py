"""Accuracy on held-out pairs: how often a model finds the preferred answer the more probable one.

The model alone is asked, not how it differs from the one it started from: the number belongs to a version,
whatever it was tuned from. A log-probability is a sum over the answer's tokens, so short answers have it easier.
"""

from __future__ import annotations

import torch

from models.rate import Rate
from worker.data import Encoded, collate
from worker.trainers.objective import mean_token_loss, row_log_probabilities

BATCH_PAIRS = 16


@torch.no_grad()
def measure_preferences(model: torch.nn.Module, pairs: Encoded, pad_id: int) -> tuple[Rate, float]:
    """Count the pairs that the model ranks as they are, and give the mean token loss on preferred answers.

    Args:
        model: the model, with its adapter.
        pairs: at least one.
        pad_id: fills the ends of short rows; never read.
    """
    device = next(model.parameters()).device
    right = 0
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(pairs.examples), BATCH_PAIRS):
            preferred, other = (
                row_log_probabilities(
                    model, collate(side[first : first + BATCH_PAIRS], pad_id, device)
                )
                for side in (pairs.examples, pairs.non_preferred)
            )
            right += int((preferred > other).sum())
    finally:
        model.train(was_training)
    return Rate(count=right, n=len(pairs.examples)), mean_token_loss(model, pairs.examples, pad_id)
