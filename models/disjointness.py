"""Whether training has seen what a model is tested on: where held-out prompts turn up again, by line.

Knows rows and places in files; `models.near_duplicates` says what counts as the same prompt. What follows
from a meeting (a set is refused, a customer's job is warned) is decided by the callers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.near_duplicates import Likeness, PromptIndex
from models.rows import Conversation, Row


class Place(NamedTuple):
    """A line of a file, counted from 1."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Meeting:
    """A held-out prompt, and the first training row that has it too."""

    held_out: Place
    trained: Place
    likeness: Likeness


@dataclass(frozen=True, slots=True)
class Overlap:
    """Lines of a data set that ask what a test prompt asks, exactly or nearly."""

    exact: tuple[int, ...]
    near: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows that are."""
        return len(self.exact) + len(self.near)


def asked(row: Row) -> Iterator[str]:
    """Give what a row asks, in any of its turns."""
    for message in row.messages:
        if message.role == "user":
            yield message.content


def meetings(
    held_out: Sequence[tuple[Place, str]], training: Mapping[str, Sequence[Conversation]]
) -> list[Meeting]:
    """Find every held-out prompt that also occurs in training rows, in the order of `held_out`.

    Args:
        held_out: prompts with their places.
        training: for each file's name its rows.
    """
    index = PromptIndex(prompt for _, prompt in held_out)
    met: dict[int, Meeting] = {}
    seen: set[str] = set()
    for file, rows in training.items():
        for number, row in enumerate(rows, start=1):
            for prompt in asked(row):
                # Harmful rows mostly repeat the alignment rows' prompts.
                if prompt in seen:
                    continue
                seen.add(prompt)
                trained = Place(file, row.line or number)
                for found in index.find(prompt):
                    place = held_out[found.place][0]
                    met.setdefault(found.place, Meeting(place, trained, found.likeness))
    return [met[number] for number in sorted(met)]


def overlap(index: PromptIndex, rows: Iterable[Row]) -> Overlap:
    """Find the rows that ask, in any turn, what a prompt of the index asks."""
    exact: list[int] = []
    near: list[int] = []
    for number, row in enumerate(rows, start=1):
        found = {duplicate.likeness for prompt in asked(row) for duplicate in index.find(prompt)}
        if found:
            lines = exact if Likeness.EXACT in found else near
            lines.append(row.line or number)
    return Overlap(tuple(exact), tuple(near))
