"""What Booster asks for at w', the weights after the simulated attack.

    loss-drop    h(w) - h(w')             gradient  grad h(w) - grad h(w')     the paper's
    ascent       -log h(w')               gradient  -grad h(w') / h(w')        still unlearnt after the attack
    refusal      f(w')                    gradient  grad f(w')                 still refuses after the attack
    collapse     CE(w'; one token)        gradient  grad CE(w')                good for nothing after it (CTRAP)

Every gradient is taken at w' as if w' did not depend on w, as the paper's Algorithm 1 does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch

from models.methods import BoosterConfig, OuterLoss
from worker.data import IGNORED, Batch
from worker.trainers.attacker import Attack
from worker.trainers.step import Step, Weights


@dataclass(frozen=True, slots=True)
class Penalty:
    """The penalty's gradient by the trained weights, and what was seen at w'."""

    gradient: Weights
    diagnostics: Mapping[str, torch.Tensor]


def penalty(step: Step, config: BoosterConfig, attack: Attack, harmful: Sequence[Batch]) -> Penalty:
    """Measure the outer loss of `config` at w'. One pass."""
    match config.outer_loss:
        case OuterLoss.LOSS_DROP:
            there = step.measure(attack.after, harmful, noise="harmful")
            gradient = {
                name: slope - there.gradient[name] for name, slope in attack.here.gradient.items()
            }
            return Penalty(gradient, {"harmful_loss_drop": attack.here.loss - there.loss})
        case OuterLoss.ASCENT:
            # The logarithm bounds the push: where h is high already there is little left to gain.
            is_here = config.inner_steps == 0
            there = attack.here if is_here else step.measure(attack.after, harmful, noise="harmful")
            gradient = {name: -there.gradient[name] / there.loss for name in step.weights}
            return Penalty(gradient, {"harmful_loss_drop": attack.here.loss - there.loss})
        case OuterLoss.REFUSAL:
            there = step.measure(attack.after, step.rows, noise="rows")
        case OuterLoss.COLLAPSE:
            there = step.measure(attack.after, [_one_token(b) for b in step.rows], noise="rows")
        case _:
            assert_never(config.outer_loss)
    return Penalty(
        {name: there.gradient[name] for name in step.weights}, {"outer_loss": there.loss}
    )


def _one_token(batch: Batch) -> Batch:
    """Give the batch with every trained token replaced by the one that ends its first row."""
    trained = batch.labels != IGNORED
    token = batch.labels[0][trained[0]][-1]
    return replace(batch, labels=torch.where(trained, token, batch.labels))
