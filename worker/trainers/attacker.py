"""The simulated attacker: where the weights would be after a little harmful fine-tuning.

    w_0 = w,   w_i = w_(i-1) - (alpha / k) * d_i / ||d_i||,   w' = w_k

d_i is the gradient of h at w_(i-1), or its signs, on the same harmful rows in every inner step. With k = 1 and the
gradient it is the step of Booster's Algorithm 1. The attacker moves the trained weights themselves, or a LoRA
adapter of its own: a customer's fresh adapter starts with B = 0, so it stands still at w, and its A is drawn anew
every so many steps, as customers' are. u has length 1 exactly, and is 0 where the gradient is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.methods import Attacker, BoosterConfig
from worker.data import Batch
from worker.row_order import private_seed
from worker.trainers.step import Measured, Step, Weights, global_norm


@dataclass(frozen=True, slots=True)
class Attack:
    """A simulated attack.

    Attributes:
        here: h and its gradient by the trained weights, at w.
        norm: length of the gradient by what the attacker moves, at w.
        after: w', for `Objective`: every tensor that is not the model's own.
    """

    here: Measured
    norm: torch.Tensor
    after: Weights


def simulate(step: Step, config: BoosterConfig, harmful: Sequence[Batch]) -> Attack:
    """Let the attacker of `config` take its k steps on the harmful rows.

    Costs k passes, and one where k is 0, when w' is w.

    Raises:
        ValueError: the attacker's adapter is asked for and the model has none.
    """
    own = config.attacker == Attacker.OWN
    fresh = {} if own else _fresh_adapter(step, config)
    moved = list(step.weights) if own else [name for name in fresh if _is_moved(name)]
    length = _length(step, config) / max(1, config.inner_steps)
    point: dict[str, torch.Tensor] = {**step.weights, **fresh}
    seen: list[tuple[Measured, torch.Tensor]] = []
    for _ in range(max(1, config.inner_steps)):
        found = step.measure(point, harmful, noise="harmful")
        slope = {name: found.gradient[name] for name in moved}
        norm = global_norm(slope)
        seen.append((found, norm))
        if config.inner_steps == 0:
            break
        if config.inner_rule == "sign":
            slope = {name: part.sign() for name, part in slope.items()}
            norm = global_norm(slope)
        point |= step_along({name: point[name] for name in moved}, slope, norm, length)
    first, first_norm = seen[0]
    here = Measured(
        first.loss,
        {name: first.gradient[name] for name in step.weights},
        first.token_accuracy,
        first.tokens,
    )
    return Attack(here, first_norm, point)


@torch.no_grad()
def step_along(
    weights: Weights, direction: Weights, norm: torch.Tensor, length: float | torch.Tensor
) -> dict[str, torch.Tensor]:
    """Give w - length * d / ||d|| as new tensors; w itself where d is 0."""
    divisor = torch.where(norm > 0, norm, torch.ones_like(norm))
    # Divided first: length / ||d|| overflows for tiny gradients, d / ||d|| never does.
    return {name: w - length * (direction[name] / divisor) for name, w in weights.items()}


def _length(step: Step, config: BoosterConfig) -> float | torch.Tensor:
    length = config.alpha
    if config.alpha_spread > 1:
        generator = torch.Generator().manual_seed(private_seed(step.seed, "alpha", step.index))
        place = 2 * float(torch.rand((), generator=generator)) - 1
        length *= math.exp(place * math.log(config.alpha_spread))
    return length * global_norm(step.weights).detach() if config.is_alpha_relative else length


def _fresh_adapter(step: Step, config: BoosterConfig) -> dict[str, torch.Tensor]:
    """Give the attacker's adapter as a customer's would start: A random, B zero."""
    if not step.attacker:
        raise ValueError("the model has no adapter for the simulated attacker")
    draw = step.index // config.attacker_every
    drawn = {}
    for name, tensor in step.attacker.items():
        if _is_moved(name):
            drawn[name] = torch.zeros_like(tensor)
        else:
            generator = torch.Generator().manual_seed(
                private_seed(step.seed, "attacker", name, draw)
            )
            # Kaiming's uniform draw with a = sqrt(5), which is how LoRA's A starts: +- 1 / sqrt(inputs).
            bound = 1 / math.sqrt(tensor.shape[1])
            uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float32)
            drawn[name] = ((2 * uniform - 1) * bound).to(tensor)
    return drawn


def _is_moved(name: str) -> bool:
    return "lora_B" in name
