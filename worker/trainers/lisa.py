"""Lisa: turns of safety rows and of the customer's, each held near the other (Huang et al., arXiv 2405.18641).

    alignment turn, K1 steps:   min_w  CE(safety rows)    + rho/2 * ||w - w_user||^2
    user turn,      K2 steps:   min_w  CE(customer's)     + rho/2 * ||w - w_alignment||^2

w_user and w_alignment are the weights at which the other kind of turn last ended (at first: the weights at the
start). The pull begins after a tenth of all steps (section 5 of the paper). A job begins with an alignment turn;
the customer's rows of those steps are not used. The reported loss includes no pull.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from models.methods import LisaConfig
from worker.trainers.step import Direction, Step, Weights

ALIGNMENT, USER = "alignment", "user"


@dataclass(slots=True)
class Lisa:
    """Alternates between two data sets with a proximal pull. One pass. Stateful: it remembers anchors."""

    config: LisaConfig
    _ends: dict[str, Weights] = field(default_factory=dict, repr=False)

    def __call__(self, step: Step) -> Direction:
        """Give the gradient of this turn's loss and pull."""
        turn = self._turn(step.index)
        if not self._ends:
            start = _copy(step.weights)
            self._ends = {ALIGNMENT: start, USER: start}
        elif step.index > 0 and self._turn(step.index - 1) != turn:
            # The other turn has ended, at the weights before this step.
            self._ends[self._turn(step.index - 1)] = _copy(step.weights)
        rows = step.rows if turn == USER else step.draw_safety(None)
        measured = step.measure(step.weights, rows, noise="rows")
        if self.config.rho == 0 or step.index <= self.config.warmup_ratio * step.total:
            return Direction(measured.gradient, measured)
        anchor = self._ends[ALIGNMENT if turn == USER else USER]
        with torch.no_grad():
            gradient = {
                name: slope + self.config.rho * (step.weights[name] - anchor[name])
                for name, slope in measured.gradient.items()
            }
        return Direction(gradient, measured)

    def state(self) -> Weights:
        """Give the anchors."""
        return {f"{turn}/{name}": w for turn, end in self._ends.items() for name, w in end.items()}

    def restore(self, state: Weights) -> None:
        """Take the anchors back."""
        self._ends = (
            {
                turn: {
                    name.removeprefix(f"{turn}/"): w
                    for name, w in state.items()
                    if name.startswith(f"{turn}/")
                }
                for turn in (ALIGNMENT, USER)
            }
            if state
            else {}
        )

    def _turn(self, index: int) -> str:
        place = index % (self.config.alignment_steps + self.config.user_steps)
        return ALIGNMENT if place < self.config.alignment_steps else USER


def _copy(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
