"""Matrices that are kept as a product of two thin ones, and what can be done without multiplying them out.

    M = left @ right        left: (out, r), right: (r, in)

Sums lay the factors side by side, so the rank that a sum is written with grows; `compressed` writes it with
no more than it has. All in float64: differences of nearly equal updates are taken. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.linalg import qr, svd

# Beside its largest direction a float32 adapter holds none that is smaller than this.
TOLERANCE = 1e-7
# For the leading directions of a whole matrix: directions that are carried along, and rounds.
SPARE_DIRECTIONS = 16
POWER_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class LowRank:
    """One layer's update, (out, in), as left (out, r) @ right (r, in)."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        """The rank that it is written with."""
        return self.left.shape[1]

    def scaled(self, factor: float) -> LowRank:
        """Give a multiple of it."""
        return LowRank(factor * self.left, self.right)

    def dense(self) -> torch.Tensor:
        """Multiply it out."""
        return self.left @ self.right


def total(*parts: LowRank) -> LowRank:
    """Add matrices of one shape, exactly; the ranks add up."""
    return LowRank(
        torch.cat([part.left for part in parts], dim=1),
        torch.cat([part.right for part in parts], dim=0),
    )


def norm(matrix: LowRank) -> float:
    """Give the Frobenius norm."""
    return float(torch.linalg.vector_norm(_decomposed(matrix)[1]))


def compressed(matrix: LowRank, limit: int) -> tuple[LowRank, float]:
    """Write a matrix with as few directions as it has, and with `limit` at most, the largest ones.

    Returns:
        The matrix with balanced factors, and the share of its Frobenius norm that was cut.
    """
    left, values, right = _decomposed(matrix)
    kept = min(limit, _rank(values))
    roots = values[:kept].sqrt()
    cut, whole = (float(torch.linalg.vector_norm(part)) for part in (values[kept:], values))
    # What is lost to rounding is no truncation.
    error = cut / whole if kept == limit and whole > 0 else 0.0
    return LowRank(left[:, :kept] * roots, roots[:, None] * right[:kept]), error


def leading(matrix: LowRank, rank: int) -> LowRank:
    """Give the part of a matrix along its `rank` largest directions; none that it has not."""
    left, values, right = _decomposed(matrix)
    kept = min(rank, _rank(values))
    return LowRank(left[:, :kept] * values[:kept], right[:kept])


def leading_of(matrix: torch.Tensor, rank: int) -> LowRank:
    """Give the part of a whole matrix along its `rank` largest directions, by subspace iteration.

    The same on every call; exact where `rank` and the spare directions reach the matrix's own rank.

    Args:
        matrix: (out, in), on any device.
        rank: how many directions.
    """
    devices = [matrix.device] if matrix.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        directions = min(rank + SPARE_DIRECTIONS, *matrix.shape)
        left, values, right = torch.svd_lowrank(matrix.float(), q=directions, niter=POWER_ROUNDS)
    part = LowRank((left * values).double().cpu(), right.T.double().cpu())
    return leading(part, rank)


def span(matrix: LowRank) -> torch.Tensor:
    """Give an orthonormal basis of the columns of a matrix, (out, rank)."""
    left, values, _ = _decomposed(matrix)
    return left[:, : _rank(values)]


def projected(matrix: LowRank, basis: torch.Tensor) -> LowRank:
    """Project the columns of a matrix onto the span of an orthonormal basis; the rank does not grow."""
    return LowRank(basis @ (basis.T @ matrix.left), matrix.right)


def _decomposed(matrix: LowRank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the singular value decomposition, by way of the small core between two orthogonal factors."""
    outer, left = qr(matrix.left)
    inner, right = qr(matrix.right.T)
    core_left, values, core_right = svd(left @ right.T, full_matrices=False)
    return outer @ core_left, values, core_right @ inner.T


def _rank(values: torch.Tensor) -> int:
    return int((values > TOLERANCE * values[:1]).sum())
