"""Named starting points for alignment jobs: what was not chosen in a request comes from them.

`service` is the default, and what the recorded studies chose on the sandbox. `reference` is what Booster's authors
ran (arXiv 2409.01586, section 5.1 and their code); `modern` is for today's chat models: every linear layer, the
penalty late and lazy, and one knob for its strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from models.frozen import Frozen
from models.hyperparameters import AlignHyperparameters, LoraConfig
from models.methods import (
    TITER_ADAPTER_ALPHA,
    AlignmentMethod,
    BoosterConfig,
    BoosterVaccineConfig,
    RepNoiseConfig,
    SftConfig,
    TiterConfig,
    VaccineConfig,
)

PresetName = Literal["service", "reference", "modern"]


@dataclass(frozen=True, slots=True)
class Preset:
    """Hyper-parameters, and what each method starts from, by its name."""

    hyperparameters: AlignHyperparameters
    methods: dict[str, AlignmentMethod]


PRESETS: dict[PresetName, Preset] = {
    "service": Preset(
        AlignHyperparameters(),
        {
            "sft": SftConfig(),
            "vaccine": VaccineConfig(rho=0.5),
            "repnoise": RepNoiseConfig(paired=False),
            # Late Booster holds longer than Booster in all steps, and costs half as much (docs/results.md).
            "booster": BoosterConfig(lambda_=20, alpha=0.005, start=0.7),
            "booster+vaccine": BoosterVaccineConfig(lambda_=5, alpha=0.005, rho=2),
            "titer": TiterConfig(),
        },
    ),
    "reference": Preset(
        AlignHyperparameters(
            steps=10_000,  # 20 epochs of 5,000 rows
            batch_size=10,
            learning_rate=5e-4,
            weight_decay=0.1,
            max_length=256,
            lora=LoraConfig(r=32, alpha=4, target_modules=("q_proj", "k_proj", "v_proj")),
        ),
        {
            "sft": SftConfig(),
            "vaccine": VaccineConfig(rho=5),
            "repnoise": RepNoiseConfig(alpha=0.1, beta=0.001, paired=False, mask="reference"),
            "booster": BoosterConfig(lambda_=5, alpha=0.1),
            "booster+vaccine": BoosterVaccineConfig(lambda_=5, alpha=0.1, rho=5),
            "titer": TiterConfig(),
        },
    ),
    "modern": Preset(
        AlignHyperparameters(
            steps=3_000,
            batch_size=16,
            learning_rate=5e-4,
            schedule="cosine",
            max_length=1024,
            lora=LoraConfig(r=16, alpha=32),
        ),
        {
            "sft": SftConfig(),
            "vaccine": VaccineConfig(),
            "repnoise": RepNoiseConfig(),
            "booster": BoosterConfig(alpha=0.1, ratio=1, start=0.7, every=4, clip_terms=1),
            "booster+vaccine": BoosterVaccineConfig(
                alpha=0.1, ratio=1, start=0.7, every=4, clip_terms=1
            ),
            "titer": TiterConfig(every=4, clip_terms=1),
        },
    ),
}

_Config = TypeVar("_Config", bound=Frozen)


def fill_in(
    name: PresetName, method: AlignmentMethod, hyperparameters: AlignHyperparameters
) -> tuple[AlignmentMethod, AlignHyperparameters]:
    """Give a request's configuration with what it left open taken from a preset."""
    preset = PRESETS[name]
    rule = _filled(preset.methods.get(method.name, method), method)
    rest = _filled(preset.hyperparameters, hyperparameters)
    if (
        isinstance(rule, TiterConfig)
        and rest.parameters == "adapter"
        and "alpha" not in method.model_fields_set
    ):
        rule = rule.model_copy(update={"alpha": TITER_ADAPTER_ALPHA})
    return rule, rest


def _filled(preset: _Config, asked: _Config) -> _Config:
    chosen = {field: getattr(asked, field) for field in asked.model_fields_set}
    # Validated anew: a copy would skip the bounds between fields.
    merged = preset.model_dump(by_alias=False) | {
        field: value.model_dump() if isinstance(value, Frozen) else value
        for field, value in chosen.items()
    }
    return type(asked).model_validate(merged)
