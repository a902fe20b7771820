"""From hyper-parameters to the gradient rule that they belong to."""

from __future__ import annotations

from models.hyperparameters import BoosterConfig, SftConfig
from worker.trainers.booster import Booster
from worker.trainers.sft import Sft
from worker.trainers.step import Rule


def rule_for(method: SftConfig | BoosterConfig) -> Rule:
    """Build the rule of an alignment method."""
    match method:
        case SftConfig():
            return Sft()
        case BoosterConfig():
            return Booster(method)
