"""Booster: alignment that makes the harmful loss hard to move (Huang et al., arXiv 2409.01586).

Objective (section 3 of the paper):

    min_w  f(w) + lambda * ( h(w) - h(w - alpha * u) ),      u = grad h(w) / ||grad h(w)||

f is the loss on refusals, h the loss on harmful answers: the penalty is how far one harmful step of
length alpha would lower h. Its gradient without second-order terms (Algorithm 1):

    G = grad f(w) + lambda * ( grad h(w) - grad h(w') ),     w' = w - alpha * u

To first order in alpha the added term is lambda * alpha * H u, H the Hessian of h: the gradient of
lambda * alpha * ||grad h(w)||, taken by a finite difference.

Exact where released code is not: w' are tensors of their own, so the weights are never moved and need no
restoring; one norm runs over all trained tensors; the simulated step takes the whole harmful batch, also
when that comes in micro-batches; both harmful passes see the same rows and the same dropout masks.
Deviation: u is exactly of length 1 (the released code adds 1e-7 to the norm), and 0 where the gradient is.

Extensions, each off by default: when the penalty is taken (here), which attacker is simulated
(`attacker.py`), what is asked for at w' (`outer.py`), how the penalty is weighed against f (`blend.py`),
and another rule's gradient in the place of grad f: with Vaccine's this is Booster + Vaccine (section 4.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from models.methods import BoosterConfig
from worker.trainers.attacker import simulate
from worker.trainers.blend import blend
from worker.trainers.outer import penalty
from worker.trainers.sft import Sft
from worker.trainers.step import Direction, Rule, Step


@dataclass(frozen=True, slots=True)
class Booster:
    """`aligned` (SFT) plus the penalty on the harmful loss drop. Three passes; one where it is off."""

    config: BoosterConfig
    aligned: Rule = field(default_factory=Sft)

    def __call__(self, step: Step) -> Direction:
        """Give grad f(w) + lambda * (grad h(w) - grad h(w'))."""
        aligned = self.aligned(step)  # grad f(w): Algorithm 1, line 4
        if not self._is_due(step):
            # Not multiplied by 0: that would let a NaN of h through, and cost two passes.
            return aligned
        harmful = step.draw_harmful(self.config.harmful_batch_size)
        attack = simulate(step, self.config, harmful)  # grad h(w) and w': line 5
        found = penalty(step, self.config, attack, harmful)  # grad h(w) - grad h(w'): line 6
        mixed = blend(aligned.gradient, found.gradient, self.config)
        return Direction(
            mixed.gradient,
            aligned.measured,
            {
                **aligned.diagnostics,
                "harmful_loss": attack.here.loss,
                "harmful_grad_norm": attack.norm,
                **found.diagnostics,
                **mixed.diagnostics,
            },
        )

    def _is_due(self, step: Step) -> bool:
        """Whether this step takes the penalty: late (from `start` on) and lazy (every `every` steps)."""
        late = step.index - round(self.config.start * step.total)
        return not self.config.is_off and late >= 0 and late % self.config.every == 0
