"""Repair after tuning: what is done to a customer's adapter before it is measured, layer by layer.

    W_tuned - W_root  =  held  +  own          held: what the job began with;  own: what the customer added

    LoX        (arXiv 2506.15606)    held + c * top_k(S)                     S = W_aligned - W_base
    Safe LoRA  (arXiv 2405.16833)    own -> P own   where cos(own, P own) < tau,   P onto the span of top_k(S)
    scaling                          held + s * own

P is an orthogonal projection, so cos(own, P own) = ||P own|| / ||own||. An adapter is a layer's update by the
layer's name. The result has the rank of its parts together: up to twice the adapter's, for a continued
adapter (the customer's own update is a difference of two), and k more under LoX on an alignment in full
parameters; `rejoined` cuts it to a limit and says what that cost. Knows neither files nor models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from models.tuning import LoxConfig, Repair, SafeLoraConfig
from worker.low_rank import LowRank, compressed, leading, norm, projected, span, total

Adapter = Mapping[str, LowRank]
# Gives a layer's S along its so many largest directions; none where the alignment left the layer alone.
Alignment = Callable[[str, int], LowRank | None]


@dataclass(frozen=True, slots=True)
class Split:
    """One layer of a tuned adapter: what the job began with (none: nothing), and what the customer added."""

    held: LowRank | None
    own: LowRank
    is_repaired: bool = False


def split(tuned: LowRank, start: LowRank | None) -> Split:
    """Tell the customer's own update from what the job began with."""
    return Split(start, tuned if start is None else total(tuned, start.scaled(-1)))


def lox(layer: Split, safety: LowRank, c: float) -> Split:
    """Add `c` times the alignment's leading part to what is not the customer's."""
    if c == 0:
        return layer
    added = safety.scaled(c)
    held = added if layer.held is None else total(layer.held, added)
    return Split(held, layer.own, is_repaired=True)


def safe_lora(layer: Split, safety: LowRank, tau: float) -> Split:
    """Project the customer's own update onto the alignment's span, if it is far from it."""
    inside = projected(layer.own, span(safety))
    if norm(inside) >= tau * norm(layer.own):
        return layer
    return Split(layer.held, inside, is_repaired=True)


def repaired(layers: Mapping[str, Split], alignment: Alignment, repair: Repair) -> dict[str, Split]:
    """Repair every layer that the alignment has changed.

    Args:
        layers: the tuned adapter, split.
        alignment: gives a layer's safety part.
        repair: which repair, and how strong.
    """
    result = dict(layers)
    for name, layer in layers.items():
        safety = alignment(name, repair.rank)
        if safety is None:
            continue
        match repair:
            case LoxConfig():
                result[name] = lox(layer, safety, repair.c)
            case SafeLoraConfig():
                result[name] = safe_lora(layer, safety, repair.tau)
            case _:
                assert_never(repair)
    return result


def rejoined(
    layers: Mapping[str, Split], scale: float, limit: int
) -> tuple[dict[str, LowRank], float]:
    """Make an adapter again, with a share of the customer's own update.

    Args:
        layers: the tuned adapter, split.
        scale: the share, 0 to 1.
        limit: the largest rank of a layer's update.

    Returns:
        The adapter, and the largest share of a layer's update (Frobenius norm) that the limit has cut.
    """
    adapter, worst = {}, 0.0
    for name, layer in layers.items():
        own = layer.own.scaled(scale)
        whole = own if layer.held is None else total(layer.held, own)
        adapter[name], error = compressed(whole, limit)
        worst = max(worst, error)
    return adapter, worst


def alignment_of(adapter: Adapter) -> Alignment:
    """Give the safety parts of an alignment that left an adapter."""
    return lambda name, rank: leading(adapter[name], rank) if name in adapter else None
