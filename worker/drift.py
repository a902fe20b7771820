"""Perplexity drift: how far a model has moved from its parent on text that neither was tuned on.

Both read the same held-out rows; compared are their mean token losses (negative log-likelihoods, nats).

    ratio = exp(nll - nll of the parent) = perplexity / perplexity of the parent

1 is no change, 1.1 a perplexity a tenth higher. The interval is a paired bootstrap over rows: each
resample draws the same rows for both, so what makes a row hard for both cancels out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.evaluation import PerplexityDrift
from models.rows import MAX_FAULTS, InvalidRows, Pair, RowFault, parse_line
from worker.data import IGNORED, Example, RowEncoder, collate
from worker.task_rows import UnreadableFile, read_lines

MAX_ROWS = 5_000
RESAMPLES = 2_000
BATCH_SIZE = 16
# Of the resamples' ratios, in percent: a two-sided interval of 95%.
LOW_PERCENT, HIGH_PERCENT = 2.5, 97.5


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Per row, the summed loss of its counted tokens in nats, (rows,) float64, and their number."""

    losses: torch.Tensor
    tokens: torch.Tensor

    @property
    def mean(self) -> float:
        """Mean token loss over all rows, in nats."""
        return float(self.losses.sum() / self.tokens.sum())


def read_text_rows(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    """Read general text: of a row `{"text"}` every token counts, of a conversation its answers.

    Raises:
        UnreadableFile: there is no such file, or it has no rows or too many.
        InvalidRows: naming every faulty row.
    """
    encoder = RowEncoder(tokenizer, max_length)
    rows: list[Example] = []
    faults: list[RowFault] = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            read = _read_row(line, number, tokenizer, encoder, max_length)
            (rows if isinstance(read, Example) else faults).append(read)  # type: ignore[arg-type]
    if faults:
        raise InvalidRows(faults[:MAX_FAULTS], faulty_rows=len(faults), param=path.name)
    if not 0 < len(rows) <= MAX_ROWS:
        raise UnreadableFile(f"{path.name} has {len(rows):,} rows; 1 to {MAX_ROWS:,} are read.")
    return rows


@torch.no_grad()
def row_losses(
    model: PreTrainedModel,
    rows: Sequence[Example],
    pad_id: int,
    *,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int, int], None] | None = None,
) -> RowLosses:
    """Take the loss of every row, in evaluation mode.

    Args:
        model: the model; its training mode is restored.
        rows: rows as tokens.
        pad_id: fills the ends of short rows; never read.
        batch_size: rows in a forward pass.
        on_progress: told how many rows are read, and of how many.
    """
    was_training = model.training
    model.eval()
    # Neighbours of like length waste little on padding.
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].input_ids))
    losses = torch.zeros(len(rows), dtype=torch.float64)
    tokens = torch.zeros(len(rows), dtype=torch.float64)
    try:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = collate([rows[place] for place in places], pad_id, model.device)
            logits = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits  # (B, T, V)
            counted = batch.labels[:, 1:] != IGNORED  # (B, T - 1): position t predicts token t + 1
            loss = cross_entropy(
                logits[:, :-1][counted].float(), batch.labels[:, 1:][counted], reduction="none"
            ).double()  # (N,)
            owner = counted.nonzero()[:, 0]  # which row of the batch each of the N belongs to
            summed = torch.zeros(len(places), dtype=torch.float64, device=loss.device)
            losses[places] = summed.index_add_(0, owner, loss).cpu()
            tokens[places] = counted.sum(1).double().cpu()
            if on_progress is not None:
                on_progress(start + len(places), len(rows))
    finally:
        model.train(was_training)
    return RowLosses(losses, tokens)


def compare(own: RowLosses, parent: RowLosses) -> PerplexityDrift:
    """Compare two models on the same rows.

    Raises:
        ValueError: the rows have other tokens for the one than for the other.
    """
    if not torch.equal(own.tokens, parent.tokens):
        raise ValueError("the models were not measured on the same tokens")
    rows = len(own.tokens)
    shift = own.losses - parent.losses
    generator = torch.Generator().manual_seed(0)
    differences = torch.empty(RESAMPLES, dtype=torch.float64)
    for number in range(RESAMPLES):
        drawn = torch.randint(rows, (rows,), generator=generator)
        differences[number] = shift[drawn].sum() / own.tokens[drawn].sum()
    quantiles = torch.tensor([LOW_PERCENT, HIGH_PERCENT], dtype=torch.float64) / 100
    low, high = torch.quantile(differences, quantiles).tolist()
    return PerplexityDrift(
        loss=own.mean,
        parent_loss=parent.mean,
        ratio=math.exp(own.mean - parent.mean),
        low=math.exp(low),
        high=math.exp(high),
        rows=rows,
        tokens=int(own.tokens.sum()),
    )


def _read_row(
    line: bytes,
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    max_length: int,
) -> Example | RowFault:
    try:
        text = json.loads(line).get("text")
    except (ValueError, RecursionError, AttributeError):
        text = None  # not an object: the parser of rows says what is wrong
    if text is None:
        row = parse_line(line, number)
        if isinstance(row, Pair):
            return RowFault(number, "is a preference pair: it is not one text")
        return row if isinstance(row, RowFault) else encoder.encode(row)
    if not isinstance(text, str):
        return RowFault(number, "must be a string", "text")
    tokens = tuple(tokenizer(text)["input_ids"][:max_length])
    if len(tokens) < 2:
        return RowFault(number, "has fewer than two tokens", "text")
    return Example(tokens, tokens, number)
