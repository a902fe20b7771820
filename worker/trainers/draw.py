"""The rows of a step, ready for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from worker.data import Batch, Example, collate, pack
from worker.row_order import rows_of_step
from worker.trainers import ranks


@dataclass(frozen=True, slots=True)
class RowSource:
    """A data set that steps draw from.

    Attributes:
        name: of its private random stream; sources with different names never move each other.
        examples: its rows.
        seed: the run's.
        micro_batch_size: rows in a forward pass; none: all that are drawn.
        pad_id: fills the ends of short rows; never read.
        device: where the batches go.
        beside: rows of another source, one for each of these, that are drawn together with them: both
            sides' batches are as wide as the longer of the two needs. None: there is no such source.
        is_packed: rows are laid end to end rather than padded.
    """

    name: str
    examples: Sequence[Example]
    seed: int
    micro_batch_size: int | None
    pad_id: int
    device: torch.device
    beside: Sequence[Example] = ()
    is_packed: bool = False

    def draw(self, step: int, rows: int) -> list[Batch]:
        """Give this rank's part of a step's rows as micro-batches; a pure function of the step.

        Args:
            step: counted from 0.
            rows: how many all ranks together draw.
        """
        if not self.examples:
            raise ValueError(f"this method needs {self.name} rows")
        numbers = rows_of_step(len(self.examples), rows, self.seed, step, self.name)
        picked = ranks.share(numbers)
        if not picked:
            raise ValueError(f"{rows} rows a step are too few for {ranks.count()} ranks")
        size = self.micro_batch_size or len(picked)
        return [self._batch(picked[first : first + size]) for first in range(0, len(picked), size)]

    def every(self, rows: int) -> Iterator[Batch]:
        """Give each row once, in order, as batches of at most so many."""
        size = self.micro_batch_size or rows
        for first in range(0, len(self.examples), size):
            yield self._batch(range(len(self.examples))[first : first + size])

    def _batch(self, numbers: Sequence[int]) -> Batch:
        examples = [self.examples[number] for number in numbers]
        if self.is_packed:
            batch = pack(examples, self.device)
        else:
            lengths = [len(self.beside[number].input_ids) for number in numbers if self.beside]
            batch = collate(examples, self.pad_id, self.device, at_least=max(lengths, default=0))
        return replace(batch, numbers=tuple(numbers))

    def digest(self) -> str:
        """Hash the rows, so that a resumed run can be sure that they are the same."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr((example.input_ids, example.labels)).encode())
        return digest.hexdigest()
