"""Which projects' jobs go first."""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """Whose jobs are taken first. Operators set it for a project."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
