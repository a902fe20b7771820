"""Presets fill in what a request leaves open, and nothing else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.hyperparameters import AlignHyperparameters, LoraConfig
from models.methods import BoosterConfig, RepNoiseConfig, TiterConfig, VaccineConfig
from models.presets import PRESETS, PresetName, fill_in


@pytest.mark.parametrize("name", PRESETS)
def test_knows_every_alignment_method(name: PresetName) -> None:
    methods = PRESETS[name].methods
    known = {"sft", "vaccine", "repnoise", "booster", "booster+vaccine", "titer"}
    assert set(methods) == known
    assert all(method.name == key for key, method in methods.items())


def test_reference_is_what_the_authors_ran() -> None:
    method, asked = fill_in("reference", BoosterConfig(), AlignHyperparameters())
    assert isinstance(method, BoosterConfig)
    assert (method.lambda_, method.alpha, method.ratio) == (5, 0.1, None)
    assert (asked.steps, asked.learning_rate, asked.weight_decay) == (10_000, 5e-4, 0.1)
    assert asked.lora == LoraConfig(r=32, alpha=4, target_modules=("q_proj", "k_proj", "v_proj"))


def test_what_was_chosen_stays() -> None:
    method, asked = fill_in(
        "reference",
        BoosterConfig.model_validate({"lambda": 7}),
        AlignHyperparameters(steps=3, lora=LoraConfig(r=4)),
    )
    assert isinstance(method, BoosterConfig)
    assert (method.lambda_, method.alpha) == (7, 0.1)
    assert (asked.steps, asked.batch_size, asked.lora) == (3, 10, LoraConfig(r=4))


def test_titers_step_is_shorter_in_an_adapter_unless_it_is_named() -> None:
    def alpha(method: TiterConfig, **asked: object) -> float:
        filled, _ = fill_in("service", method, AlignHyperparameters.model_validate(asked))
        assert isinstance(filled, TiterConfig)
        return filled.alpha

    assert alpha(TiterConfig()) == alpha(TiterConfig(), parameters="full") == 0.02
    assert alpha(TiterConfig(every=4), parameters="adapter") == 0.005
    assert alpha(TiterConfig(alpha=0.02), parameters="adapter") == 0.02


def test_other_methods_have_values_of_their_own() -> None:
    vaccine, _ = fill_in("reference", VaccineConfig(), AlignHyperparameters())
    repnoise, _ = fill_in("reference", RepNoiseConfig(beta=0.5), AlignHyperparameters())
    assert vaccine == VaccineConfig(rho=5)
    assert repnoise == RepNoiseConfig(alpha=0.1, beta=0.5, paired=False, mask="reference")


class TestBounds:
    @pytest.mark.parametrize(
        "faulty",
        [
            {"lambda": -1},
            {"alpha": 0},
            {"alpha": -0.1},
            {"lambda": float("nan")},
            {"start": 1},
            {"every": 0},
            {"ratio": -1},
            {"unknown": 1},
        ],
        ids=lambda faulty: str(faulty),
    )
    def test_booster(self, faulty: dict[str, float]) -> None:
        with pytest.raises(ValidationError):
            BoosterConfig.model_validate(faulty)
