"""SafeGrad: the customer's gradient loses its part against the safety rows' (arXiv 2508.07172).

    G = g - min(0, <g, s>) / ||s||^2 * s        g: gradient on the customer's rows, s: on safety rows

A step that would raise the loss on refusals, to first order, is turned until it does not. Two passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.methods import SafeGradConfig
from worker.trainers.blend import without_part_against
from worker.trainers.step import Direction, Step


@dataclass(frozen=True, slots=True)
class SafeGrad:
    """SFT, turned away from what safety rows object to."""

    config: SafeGradConfig

    def __call__(self, step: Step) -> Direction:
        """Give g without its part against s."""
        measured = step.measure(step.weights, step.rows, noise="rows")
        safety = step.measure(
            step.weights, step.draw_safety(self.config.safety_batch_size), noise="safety"
        )
        return Direction(
            without_part_against(measured.gradient, safety.gradient),
            measured,
            {"safety_loss": safety.loss},
        )
