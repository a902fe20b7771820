"""Rows in batches: like lengths together, smaller batches when memory runs out, results in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

import torch

from worker.judgement import JudgeError
from worker.judges.loading import free_memory

R = TypeVar("R", bound=Sized)
T = TypeVar("T")


def in_batches(
    rows: Sequence[R], batch_size: int, ask: Callable[[list[R]], Sequence[T]]
) -> list[T]:
    """Ask about all rows and give the results in their order.

    Args:
        rows: the rows; their lengths decide which are asked about together.
        batch_size: rows in a batch, at most. A batch that does not fit into memory is halved, and so are
            those after it.
        ask: gives one result for each row of a batch.

    Raises:
        JudgeError: the model failed, or a single row does not fit into memory.
    """
    # The longest first: what fits them fits all, so that memory runs out at the start or never.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    found: dict[int, T] = {}
    while order:
        chosen = order[:batch_size]
        results = _ask(ask, [rows[index] for index in chosen])
        if results is None:
            if len(chosen) == 1:
                raise JudgeError("One exchange alone does not fit into the judge's memory.")
            batch_size = len(chosen) // 2
            free_memory()
            continue
        found.update(zip(chosen, results, strict=True))
        order = order[len(chosen) :]
    return [found[index] for index in range(len(rows))]


def _ask(ask: Callable[[list[R]], Sequence[T]], batch: list[R]) -> Sequence[T] | None:
    """Give the results, or none when memory ran out; what the batch held is free on return."""
    try:
        return ask(batch)
    except (RuntimeError, ValueError, IndexError) as error:
        # A processor's allocator has no error of its own.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return None
        raise JudgeError("The judge's model failed on a batch.") from error
