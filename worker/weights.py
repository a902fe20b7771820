"""The weights of a model, where they are not an adapter's: which of them a run trains, how they differ between two models."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel


def train_linear_weights(model: PreTrainedModel, only: Collection[str] = ()) -> None:
    """Let every linear layer's weight be trained, in place, but not the output layer's.

    These are the layers that a LoRA adapter on all linear layers changes, so an alignment in full parameters
    and one by adapter move the same matrices.

    Args:
        model: a base.
        only: last parts of the layers' names, such as `down_proj`; empty: all.

    Raises:
        ValueError: no layer has such a name.
    """
    model.requires_grad_(False)
    output = model.get_output_embeddings()
    chosen = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not output
        and (not only or name.rpartition(".")[2] in only)
    ]
    if not chosen:
        raise ValueError(f"no linear layer is called {' or '.join(sorted(only))}")
    for module in chosen:
        module.weight.requires_grad_(True)


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name every tensor that training changes."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def weight_change(before: nn.Module, after: nn.Module, layer: str) -> torch.Tensor | None:
    """Give how a linear layer's weight differs between two models, in float32 on the second one's device.

    Returns:
        `[out, in]`; none where one of them has no such layer.
    """
    ours, theirs = (dict(model.named_modules()).get(layer) for model in (after, before))
    if not isinstance(ours, nn.Linear) or not isinstance(theirs, nn.Linear):
        return None
    weight = ours.weight.detach().float()
    return weight - theirs.weight.detach().to(weight)
