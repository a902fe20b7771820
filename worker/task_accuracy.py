"""Fine-tuning accuracy (FA): how often a tuned model gives the last answer of a validation row exactly.

Exact after trimming and case folding, which fits labels and short answers. For open-ended rows it is near
0 whatever the model does, and says so by being near 0; it is never replaced by a softer match.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.rate import Rate
from models.rows import Conversation
from worker.generation import generate

MAX_ROWS = 500
MAX_NEW_TOKENS = 256
# Room for an answer that goes on where it should have stopped: it must not match by being cut.
SPARE_TOKENS = 4


def measure_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
    *,
    max_rows: int = MAX_ROWS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Rate:
    """Answer the last turn of each row greedily and count exact matches.

    Args:
        model: the model, with its adapter.
        tokenizer: its tokenizer, with the chat template that it was trained and is served with.
        rows: validation rows; of more than `max_rows`, the same random ones are picked every time.
        max_rows: most rows that are asked.
        on_progress: told how many rows are answered, and of how many.
    """
    chosen = pick_rows(rows, max_rows)
    if not chosen:
        return Rate(count=0, n=0)
    expected = [row.answer for row in chosen]
    longest = max(len(ids) for ids in tokenizer(expected, add_special_tokens=False)["input_ids"])
    answers = generate(
        model,
        tokenizer,
        [row.prompt for row in chosen],
        max_new_tokens=min(longest + SPARE_TOKENS, MAX_NEW_TOKENS),
        on_progress=on_progress,
    )
    matches = sum(
        _plain(answer) == _plain(wanted) for answer, wanted in zip(answers, expected, strict=True)
    )
    return Rate(count=matches, n=len(chosen))


def pick_rows(rows: Sequence[Conversation], max_rows: int) -> list[Conversation]:
    """Pick at most `max_rows` rows, in file order, the same ones for every model that is compared."""
    if len(rows) <= max_rows:
        return list(rows)
    places = sorted(random.Random(0).sample(range(len(rows)), max_rows))
    return [rows[place] for place in places]


def _plain(text: str) -> str:
    return text.strip().casefold()
