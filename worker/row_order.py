"""Which rows an optimiser step sees, as a pure function of the step.

Epoch after epoch of fresh permutations, laid end to end and cut into batches. Nothing is stored and no
random state is shared: a resumed run, another process or a test asks for step s and gets the same rows.
Each stream (alignment rows, harmful rows) has permutations of its own, so that drawing from one, or not
drawing at all, cannot move the other.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch


def private_seed(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed for one named purpose; different names give unrelated streams."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rows_of_step(
    count: int, batch_size: int, seed: int, step: int, stream: str = "rows"
) -> list[int]:
    """Give the `batch_size` row numbers of a step.

    A batch that meets the end of an epoch goes on into the next, so every row is seen equally often.

    Args:
        count: rows in the data set.
        batch_size: rows in a step.
        seed: the run's seed.
        step: counted from 0.
        stream: the data set's name; streams are independent.
    """
    if count < 1:
        raise ValueError("no rows to draw from")
    first = step * batch_size
    return [
        _permutation(count, private_seed(seed, stream, place // count))[place % count]
        for place in range(first, first + batch_size)
    ]


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randperm(count, generator=generator).tolist())
