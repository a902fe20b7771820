"""Where things are in a decoder, found by how it is built and not by the names of its classes.

Llama, Mistral, Qwen, Gemma, Phi, OPT, GPT-2 and their kin are a list of equal layers; each has an attention
module and a feed-forward part, a final norm follows the list, and an output layer ends it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from models.errors import DomainError

Hook = Callable[[nn.Module, object, object], object]


class UnknownStructure(DomainError):
    """The base model is not built as decoders are."""

    code = "unknown_structure"


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Give the list of decoder layers.

    Raises:
        UnknownStructure: there is none.
    """
    return _stack(model)[1]


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Give the attention module of every decoder layer, output projection included.

    Raises:
        UnknownStructure: a layer has none.
    """
    return [_child(layer, ("attn", "attention"), "attention") for layer in decoder_layers(model)]


def feed_forward_modules(model: nn.Module) -> list[nn.Module]:
    """Give the module of every decoder layer whose output is added as the feed-forward part.

    Raises:
        UnknownStructure: a layer has none.
    """
    return [
        _child(layer, ("mlp", "feed_forward", "ffn", "moe", "fc2"), "feed-forward")
        for layer in decoder_layers(model)
    ]


def final_norm(model: nn.Module) -> nn.Module:
    """Give the norm between the last layer and the output layer.

    Raises:
        UnknownStructure: there is none.
    """
    parent, _ = _stack(model)
    for name, child in parent.named_children():
        if "norm" in name or name.startswith("ln_") or name.endswith("_ln"):
            return child
    raise UnknownStructure("The base model has no final norm.")


def output_layer(model: nn.Module) -> nn.Module:
    """Give the layer that turns hidden states into logits.

    Raises:
        UnknownStructure: there is none.
    """
    found = cast(PreTrainedModel, model).get_output_embeddings()
    if found is None:
        raise UnknownStructure("The base model has no output layer.")
    return cast(nn.Module, found)


@contextmanager
def outputs_shifted(modules: Sequence[nn.Module], shifts: Sequence[torch.Tensor]) -> Iterator[None]:
    """Add a tensor to each module's output, (B, T, D), for as long as this lasts."""

    def shift_by(shift: torch.Tensor) -> Hook:
        def hook(_module: nn.Module, _inputs: object, output: object) -> object:
            return _replaced(output, _first(output) + shift)

        return hook

    handles = [
        module.register_forward_hook(shift_by(shift))
        for module, shift in zip(modules, shifts, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def outputs_seen(
    modules: Sequence[nn.Module], *, through: bool = False
) -> Iterator[list[torch.Tensor]]:
    """Collect each module's output, (B, T, D), in the order of the modules' calls.

    Args:
        modules: whose outputs.
        through: each output passes a point of its own that requires a gradient, and that is what is
            collected: the loss can be differentiated by it even where nothing below is trained.
    """
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: object) -> object:
        tensor = _first(output)
        if not through:
            seen.append(tensor)
            return None
        point = torch.zeros_like(tensor, requires_grad=True)
        seen.append(point)
        return _replaced(output, tensor + point)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _stack(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """Give the list of decoder layers with the module that holds it: the longest list of equal layers."""
    found: tuple[nn.Module, nn.ModuleList] | None = None
    for module in model.modules():
        for child in module.children():
            if (
                isinstance(child, nn.ModuleList)
                and len({type(layer) for layer in child}) == 1
                and any(_has("attn", layer) or _has("attention", layer) for layer in child)
                and (found is None or len(child) > len(found[1]))
            ):
                found = module, child
    if found is None:
        raise UnknownStructure("The base model has no list of decoder layers.")
    return found


def _child(layer: nn.Module, words: Sequence[str], role: str) -> nn.Module:
    for word in words:
        for name, child in layer.named_children():
            # A norm beside the attention carries its name too, but no matrix.
            if word in name and any(p.dim() >= 2 for p in child.parameters()):
                return child
    raise UnknownStructure(f"A layer of the base model has no {role} module.")


def _has(word: str, layer: nn.Module) -> bool:
    return any(word in name for name, _ in layer.named_children())


def _first(output: object) -> torch.Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    return cast(torch.Tensor, tensor)


def _replaced(output: object, tensor: torch.Tensor) -> object:
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
