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
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.hyperparameters import BoosterConfig
from worker.trainers.step import Direction, Step, Weights, global_norm


@dataclass(frozen=True, slots=True)
class Booster:
    """SFT plus the penalty on the harmful loss drop. Three passes; one where lambda is 0."""

    config: BoosterConfig

    def __call__(self, step: Step) -> Direction:
        """Give grad f(w) + lambda * (grad h(w) - grad h(w'))."""
        aligned = step.measure(
            step.weights, step.rows, noise="rows"
        )  # grad f(w): Algorithm 1, line 4
        if self.config.lambda_ == 0:
            # Not multiplied by 0: that would let a NaN of h through, and cost two passes.
            return Direction(aligned.gradient, aligned)
        harmful = step.draw_harmful(self.config.harmful_batch_size)
        here = step.measure(step.weights, harmful, noise="harmful")  # grad h(w): line 5
        norm = global_norm(here.gradient)
        there = step.measure(  # grad h(w') on the same rows: line 6
            simulated_step(step.weights, here.gradient, norm, self.config.alpha),
            harmful,
            noise="harmful",
        )
        gradient = {
            name: slope + self.config.lambda_ * (here.gradient[name] - there.gradient[name])
            for name, slope in aligned.gradient.items()
        }
        return Direction(
            gradient,
            aligned,
            {
                "harmful_loss": here.loss,
                "harmful_loss_drop": here.loss - there.loss,
                "harmful_grad_norm": norm,
            },
        )


@torch.no_grad()
def simulated_step(
    weights: Weights, gradient: Weights, norm: torch.Tensor, alpha: float
) -> dict[str, torch.Tensor]:
    """Give w' = w - alpha * g / ||g|| as new tensors; w itself where the gradient is 0."""
    length = torch.where(norm > 0, norm, torch.ones_like(norm))
    # Divided first: alpha / ||g|| overflows for tiny gradients, g / ||g|| never does.
    return {name: w - alpha * (gradient[name] / length) for name, w in weights.items()}
