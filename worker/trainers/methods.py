"""From hyper-parameters to the gradient rule that they belong to."""

from __future__ import annotations

from typing import assert_never

from models.methods import (
    BoosterConfig,
    BoosterVaccineConfig,
    DpoConfig,
    LisaConfig,
    Method,
    RepNoiseConfig,
    SafeGradConfig,
    SftConfig,
    VaccineConfig,
)
from worker.trainers.booster import Booster
from worker.trainers.dpo import Dpo
from worker.trainers.lisa import Lisa
from worker.trainers.repnoise import RepNoise
from worker.trainers.safegrad import SafeGrad
from worker.trainers.sft import Sft
from worker.trainers.step import Rule
from worker.trainers.vaccine import Vaccine


def rule_for(method: Method) -> Rule:
    """Build the rule of a method. A rule may remember: each run has one of its own."""
    match method:
        case SftConfig():
            return Sft()
        case VaccineConfig():
            return Vaccine(method)
        case RepNoiseConfig():
            return RepNoise(method)
        case BoosterVaccineConfig():
            return Booster(method, aligned=Vaccine(VaccineConfig(rho=method.rho)))
        case BoosterConfig():
            return Booster(method)
        case LisaConfig():
            return Lisa(method)
        case SafeGradConfig():
            return SafeGrad(method)
        case DpoConfig():
            return Dpo(method)
    assert_never(method)
