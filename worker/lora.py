"""Adapters: attach a fresh one, go on with a saved one, save, merge.

The only module that touches PEFT. An adapter is stored as PEFT stores it (``adapter_config.json`` and
``adapter_model.safetensors``), so any other tool can load it. Its weights are always float32, also over a
bfloat16 base: at the learning rates of fine-tuning most bfloat16 updates round to nothing, which both
weakens Booster's small simulated step and makes attacks look harmless.

    W' = W + (alpha / r) B A      A: (r, in), random;  B: (out, r), zero, so W' = W at the start
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import LoraModel, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from models.errors import DomainError
from models.hyperparameters import LoraConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
NARROW = (torch.float16, torch.bfloat16)


class UnusableAdapter(DomainError):
    """The adapter does not fit the base model."""

    code = "unusable_adapter"


def attach(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """Put a fresh adapter on the linear layers of `model`, in place, and freeze the rest.

    The start is a function of `seed` alone; the caller's random state is left as it was.

    Raises:
        UnusableAdapter: the model has none of the layers that `config` names.
    """
    was_training = model.training
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        try:
            peft_model = cast(PeftModel, get_peft_model(model, _peft_config(config)))
        except ValueError as error:
            raise UnusableAdapter(
                "The base model has none of the layers that target_modules names.",
                param="target_modules",
            ) from error
    _widen(peft_model)
    peft_model.train(was_training)  # PEFT's own layers start in training mode: dropout on
    return peft_model


def attach_attacker(
    model: PreTrainedModel | PeftModel, config: LoraConfig, name: str = "attacker"
) -> PeftModel:
    """Put a simulated attacker's adapter beside what is trained, in place: active, frozen, B = 0.

    Gradient rules hand in its tensors where they simulate an attack; the model computes as if it were not
    there otherwise. What required a gradient before does so afterwards, and nothing else does.

    Raises:
        UnusableAdapter: the model has none of the layers that `config` names.
    """
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    own = list(model.peft_config) if isinstance(model, PeftModel) else []
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, _peft_config(config))
            adapted = model
        else:
            adapted = cast(
                PeftModel, get_peft_model(model, _peft_config(config), adapter_name=name)
            )
    except ValueError as error:
        raise UnusableAdapter(
            "The base model has none of the layers that target_modules names.",
            param="target_modules",
        ) from error
    cast(LoraModel, adapted.base_model).set_adapter([*own, name])
    for parameter in adapted.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    _widen(adapted)
    return adapted


def load(model: PreTrainedModel, folder: Path, trainable: bool = True) -> PeftModel:
    """Put a saved adapter on `model`, in place, to be trained further or only used.

    Raises:
        UnusableAdapter: the folder is not a safetensors adapter, or is one of another base.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        # Checked here, because PEFT would look for a pickle next, and then on the hub.
        if not (folder / name).is_file():
            raise UnusableAdapter(f"The adapter folder has no {name}.")
    was_training = model.training
    try:
        peft_model = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UnusableAdapter("The adapter does not fit this base model's layers.") from error
    if not _covers(peft_model, folder / WEIGHTS_FILE):
        # PEFT says nothing of it, and layers without weights of their own would stay as at the start.
        detach(peft_model)
        raise UnusableAdapter("The adapter is one of a base model with other layers.")
    _widen(peft_model)
    peft_model.train(was_training)
    if not trainable:
        peft_model.requires_grad_(False)
    return peft_model


def save(model: PeftModel, folder: Path, *, base_model: str = "") -> None:
    """Write the adapter into `folder` as PEFT would, weights first and config last.

    Args:
        model: the adapted model.
        folder: is made when missing.
        base_model: the name under which others know the base. The path that it was loaded from, which
            PEFT would write, means nothing elsewhere and would tell strangers about this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    config = model.peft_config["default"].to_dict()
    config.update(base_model_name_or_path=base_model, inference_mode=True)
    for key, value in config.items():
        if isinstance(value, set):
            config[key] = sorted(value)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def merge(model: PeftModel) -> PreTrainedModel:
    """Add the adapter into the base weights, in place, and give the plain model back."""
    return cast(PreTrainedModel, model.merge_and_unload())


def detach(model: PeftModel) -> PreTrainedModel:
    """Take the adapter off and give the untouched base back, for the next job."""
    return cast(PreTrainedModel, model.unload())


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name every tensor that training may change."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _covers(model: PeftModel, weights: Path) -> bool:
    """Say whether a file has weights for every adapted layer, and none for others."""
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
    adapted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    return adapted <= stored and not any("lora_" in name for name in stored - adapted)


def _peft_config(config: LoraConfig) -> PeftLoraConfig:
    targets = config.target_modules
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # annotated int, used as a factor
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
    )


def _widen(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.dtype in NARROW:
            parameter.data = parameter.data.float()


def _cuda_devices(model: PreTrainedModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
