"""How the penalty's gradient p is weighed against the gradient of f.

clip_terms   f and p are clipped to this norm each, so that neither drowns the other in the combined clip
project      p loses its part against f:   p - min(0, <p, f>) / ||f||^2 * f
ratio        lambda_t = min(ratio * ||f|| / ||p||, max_lambda):   one knob, whatever the scale of h
every        a penalty that is taken every k-th step counts k times

G = f + lambda_t * k * p
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from models.methods import BoosterConfig
from worker.trainers.step import Weights, global_norm, inner_product


@dataclass(frozen=True, slots=True)
class Blend:
    """The combined gradient, and the weight where it was adapted."""

    gradient: Weights
    diagnostics: Mapping[str, torch.Tensor]


@torch.no_grad()
def blend(f: Weights, p: Weights, config: BoosterConfig) -> Blend:
    """Combine the two gradients as `config` says."""
    if config.clip_terms is not None:
        f, p = _clipped(f, config.clip_terms), _clipped(p, config.clip_terms)
    if config.project:
        p = without_part_against(p, f)
    weight: float | torch.Tensor = config.lambda_ * config.every
    diagnostics = {}
    if config.ratio is not None:
        norm = global_norm(p)
        adapted = config.ratio * global_norm(f) / torch.where(norm > 0, norm, torch.ones_like(norm))
        adapted = adapted.clamp(max=config.max_lambda)
        diagnostics["lambda"] = adapted
        weight = adapted * config.every
    return Blend({name: slope + weight * p[name] for name, slope in f.items()}, diagnostics)


def without_part_against(direction: Weights, other: Weights) -> dict[str, torch.Tensor]:
    """Give `direction` without its component along -`other`; itself where it has none."""
    square = inner_product(other, other)
    against = inner_product(direction, other).clamp(max=0)
    share = against / torch.where(square > 0, square, torch.ones_like(square))
    return {name: part - share * other[name] for name, part in direction.items()}


def _clipped(gradient: Weights, norm: float) -> dict[str, torch.Tensor]:
    length = global_norm(gradient)
    factor = (norm / torch.where(length > 0, length, torch.ones_like(length))).clamp(max=1)
    return {name: part * factor for name, part in gradient.items()}
