"""The chain of the audit log's entries: how an entry is hashed, and whether a chain is whole.

Knows no database: an export can be checked far from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: What the first entry names as the hash before it.
GENESIS = "0" * 64


def hash_content(content: Mapping[str, object]) -> str:
    """Hash an entry: SHA-256 over its JSON without `sha256`, keys sorted, no spaces, ASCII only."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain at some moment: keep it elsewhere, and later ask whether it is still in the chain."""

    position: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What was found. `fault` is a sentence about the first broken entry; `head` the last good one."""

    entries: int
    head: Head
    fault: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every link holds."""
        return self.fault is None


def check_chain(
    entries: Iterable[tuple[Mapping[str, object], str]], noted: Head | None = None
) -> ChainReport:
    """Check a chain from its first entry on. Pure: exports can be checked far from the database.

    Args:
        entries: content and hash of each, in order.
        noted: a head that was kept elsewhere, and must be in the chain.
    """
    head, count = Head(0, GENESIS), 0
    found_noted = noted is None or noted == head
    for content, sha256 in entries:
        expected = head.position + 1
        if content.get("position") != expected:
            return ChainReport(count, head, f"Entry {expected} is missing.")
        if content.get("previous_sha256") != head.sha256:
            return ChainReport(
                count, head, f"Entry {expected} does not follow from the one before it."
            )
        if hash_content(content) != sha256:
            return ChainReport(count, head, f"Entry {expected} was changed after it was written.")
        head, count = Head(expected, sha256), count + 1
        found_noted = found_noted or noted == head
    if not found_noted and noted is not None:
        return ChainReport(
            count, head, f"The noted head at position {noted.position} is not in the chain."
        )
    return ChainReport(count, head)
