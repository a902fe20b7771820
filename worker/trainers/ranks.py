"""Data parallelism: several processes that take one optimiser step together.

Each rank measures its share of the rows; losses and gradients are then added up over all ranks. They are
weighted by tokens, as micro-batches are, so a step over two ranks is the step that one would take. Every
rank therefore has the whole gradient before any norm is taken: the simulated step of Booster is the same
everywhere. Without a process group there is one rank, and nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def rank() -> int:
    """Number this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Count the processes that step together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """Give this rank's part of what one step draws."""
    return items[rank() :: count()]


def total(number: int, device: torch.device) -> int:
    """Add a whole number up over the ranks."""
    if count() == 1:
        return number
    held = torch.tensor(number, device=device)
    distributed.all_reduce(held)
    return int(held)


def add_up(tensors: Sequence[torch.Tensor]) -> None:
    """Add tensors up over the ranks, in place."""
    if count() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
