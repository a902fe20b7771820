"""Rows of tokens to one rectangle, filled up on the side that the reader of it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch


def padded(
    rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give ids and attention mask, both (B, T) integers.

    Right padding needs no correction of positions: a causal model's real tokens never see the pads. Left
    padding puts every row's last token into the last column, where generation goes on.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return ids, mask
