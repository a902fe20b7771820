"""Supervised fine-tuning: the baseline, and what a customer's job runs.

G = grad f(w)        f: mean cross-entropy of the trained tokens (refusals when aligning)
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.trainers.step import Direction, Step


@dataclass(frozen=True, slots=True)
class Sft:
    """Follows the gradient of the loss and nothing else. One pass."""

    def __call__(self, step: Step) -> Direction:
        """Give grad f(w)."""
        measured = step.measure(step.weights, step.rows, noise="rows")
        return Direction(measured.gradient, measured)
