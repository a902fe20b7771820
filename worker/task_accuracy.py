"""Fine-tuning accuracy (FA): how often a tuned model gives the last answer of a validation row.

By default exactly, after trimming and case folding, which fits labels and short answers. For open-ended
rows that is near 0 whatever the model does, and says so by being near 0; it is never replaced by a softer
match. Tasks that papers report have rules of their own, in `worker.scorers`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.hyperparameters import ScorerName
from models.rate import Rate
from models.rows import MAX_FAULTS, Conversation, InvalidRows, Pair, Row, RowFault
from worker.generation import generate
from worker.scorers import SCORERS

MAX_ROWS = 500
MAX_NEW_TOKENS = 256
# Room for an answer that goes on where it should have stopped: it must not match by being cut.
SPARE_TOKENS = 4

Picked = TypeVar("Picked")


def measure_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
    *,
    scorer: ScorerName = "exact",
    max_rows: int = MAX_ROWS,
    max_new_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Rate:
    """Answer the last turn of each row greedily and count the right answers.

    Args:
        model: the model, with its adapter.
        tokenizer: its tokenizer, with the chat template that it was trained and is served with.
        rows: validation rows; of more than `max_rows`, the same random ones are picked every time.
        scorer: when an answer is right.
        max_rows: most rows that are asked.
        max_new_tokens: where an answer is cut; none: as the scorer asks.
        on_progress: told how many rows are answered, and of how many.
    """
    chosen = pick_rows(rows, max_rows)
    if not chosen:
        return Rate(count=0, n=0)
    expected = [row.answer for row in chosen]
    rule = SCORERS[scorer]
    if max_new_tokens is None:
        max_new_tokens = rule.answer_tokens or _room_for(expected, tokenizer)
    answers = generate(
        model,
        tokenizer,
        [row.prompt for row in chosen],
        max_new_tokens=max_new_tokens,
        on_progress=on_progress,
    )
    right = sum(map(rule.is_right, answers, expected))
    return Rate(count=right, n=len(chosen))


def check_answers(
    rows: Sequence[Row], scorer: ScorerName, *, param: str = "validation_file"
) -> None:
    """Refuse conversations that no answer could be right on, under this scorer; pairs have no right answer.

    Raises:
        InvalidRows: naming every such row.
    """
    fault = SCORERS[scorer].fault
    faults = [
        RowFault(row.line, reason)
        for row in rows
        if not isinstance(row, Pair) and (reason := fault(row.answer)) is not None
    ]
    if faults:
        raise InvalidRows(faults[:MAX_FAULTS], faulty_rows=len(faults), param=param)


def pick_rows(rows: Sequence[Picked], max_rows: int) -> list[Picked]:
    """Pick at most `max_rows` rows, in file order, the same ones for every model that is compared."""
    if len(rows) <= max_rows:
        return list(rows)
    places = sorted(random.Random(0).sample(range(len(rows)), max_rows))
    return [rows[place] for place in places]


def _room_for(expected: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    encoded = tokenizer(list(expected), add_special_tokens=False)["input_ids"]
    return min(max(map(len, encoded)) + SPARE_TOKENS, MAX_NEW_TOKENS)
