"""A saved adapter as what it adds to each layer: read without PEFT and without a model, and written again.

`worker.lora` saves and loads whole adapters; here their tensors are taken apart for `worker.repair`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch.nn.functional import pad

from worker.lora import CONFIG_FILE, WEIGHTS_FILE, UnusableAdapter
from worker.low_rank import LowRank

PREFIX = "base_model.model."
# What makes an adapter more than one product of two matrices for each layer, by PEFT's names.
ELABORATIONS = ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save")


def read_adapter(folder: Path) -> dict[str, LowRank]:
    """Read what a saved adapter adds to each layer, by the layer's name in the base, in float64.

    Raises:
        UnusableAdapter: it is not a plain LoRA adapter.
    """
    config = _read_config(folder)
    scaling = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / WEIGHTS_FILE)
    layers = {name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name}
    if {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"} != set(tensors):
        raise UnusableAdapter("The adapter is not a plain LoRA adapter.")
    return {
        layer.removeprefix(PREFIX): LowRank(
            scaling * tensors[f"{layer}.lora_B.weight"].double(),
            tensors[f"{layer}.lora_A.weight"].double(),
        )
        for layer in sorted(layers)
    }


def write_adapter(updates: Mapping[str, LowRank], folder: Path, like: Path) -> int:
    """Write an adapter that adds `updates`, in float32, with all else as in the adapter of the folder `like`.

    PEFT's files have one rank: that of the largest update, which is given back; others are filled with
    zeros. The scaling stays, so that a later job on the adapter learns at the same pace.
    """
    config = _read_config(like)
    scaling = config["lora_alpha"] / config["r"]
    rank = max(1, *(update.rank for update in updates.values()))
    tensors = {}
    for layer, update in updates.items():
        padding = (0, rank - update.rank)
        half = scaling**-0.5
        left, right = half * update.left.float(), half * update.right.float()
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = pad(right, (0, 0, *padding)).contiguous()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = pad(left, padding).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.update(r=rank, lora_alpha=scaling * rank)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return rank


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    if any(config.get(name) for name in ELABORATIONS):
        raise UnusableAdapter("The adapter is not a plain LoRA adapter.")
    return config
