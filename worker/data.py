"""Conversations to tokens: what the model reads, and which tokens the loss counts.

Knows the tokenizer and its chat template; knows nothing of files, models or training.

Only what the model itself must write is trained: an assistant turn from the end of the generation prompt
to the token that ends the turn, that token included. The turns are found in the rendered *text*, so a
template needs no ``{% generation %}`` marks:

    <user> 2+2? <end> <assistant>  4 <end>
    └────────── prompt ─────────┘  └ trained ┘      prompt = the template's own text for the turns before

The text is tokenized whole. Where a token would straddle the edge of a trained turn (a byte-pair merge
over the boundary, say) the text is cut there and the sides are tokenized apart: the prompt then has the
very tokens that serving will feed, and no token is half prompt, half answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from models.rows import MAX_FAULTS, PAIR_KEYS, Conversation, InvalidRows, Pair, Row, RowFault

IGNORED = -100  # the label that `cross_entropy` skips


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens. `labels[t]` is `input_ids[t]` where the loss counts token t, else `IGNORED`."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    line: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A data set as tokens: one example for each conversation, or two for each pair, in the rows' order."""

    examples: list[Example]
    non_preferred: list[Example]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as integer tensors, padded on the right to one length, (B, T), or packed end to end, (1, T).

    Right padding, so that positions need no correction: a causal model's real tokens never see the pads.
    In a packed batch `position_ids` begin anew with each row, by which the model tells the rows apart.
    `numbers` are the rows' places in their data set, where somebody drew them from one.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    trained_tokens: int
    position_ids: torch.Tensor | None = None
    numbers: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows the batch has."""
        if self.position_ids is not None:
            return int((self.position_ids == 0).sum())
        return self.input_ids.shape[0]

    @property
    def trained_tokens_of_rows(self) -> list[int]:
        """How many tokens of each row the loss counts."""
        counted = self.labels != IGNORED
        if self.position_ids is None:
            return counted[:, 1:].sum(1).tolist()
        of_row = (self.position_ids[0] == 0).cumsum(0) - 1
        return torch.bincount(of_row[counted[0]], minlength=self.rows).tolist()

    @property
    def model_inputs(self) -> dict[str, torch.Tensor]:
        """What a model is given of it."""
        if self.position_ids is not None:
            # A mask beside them would make the model see one row.
            return {"input_ids": self.input_ids, "position_ids": self.position_ids}
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


class _Unfit(Exception):
    """What is wrong with one row, before its line number is attached."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        self.reason = reason
        self.field = field
        super().__init__(reason)


class RowEncoder:
    """Encodes rows for one tokenizer and one length."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Learn the tokenizer's special tokens once, as looking them up is slow."""
        self._tokenizer = tokenizer
        self._max_length = max_length
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | set(
            tokenizer.all_special_tokens
        )
        # The longest first, so that no token hides behind another that it begins with.
        words = sorted(
            (word for word in special if word.strip()), key=lambda word: (-len(word), word)
        )
        self._special = re.compile("|".join(map(re.escape, words)) or r"(?!)")
        self._turn_end = re.compile(rf"\s*(?:{self._special.pattern})")

    def encode(self, conversation: Conversation) -> Example | RowFault:
        """Give the row's tokens, or say why it cannot be trained on."""
        try:
            self._refuse_special_tokens(conversation)
            text, turns = self._trained_turns(conversation)
            input_ids, labels = self._tokenize(text, turns)
            kept = self._max_length
            if all(label == IGNORED for label in labels[1:kept]):
                raise _Unfit(
                    f"the prompt leaves no room for the answer: the row has {len(input_ids)} tokens and "
                    f"is cut after {kept}"
                )
        except _Unfit as fault:
            return RowFault(conversation.line, fault.reason, fault.field)
        return Example(tuple(input_ids[:kept]), tuple(labels[:kept]), conversation.line)

    def _refuse_special_tokens(self, conversation: Conversation) -> None:
        # Such text would become control tokens: a row could then forge turns, or end its own.
        for index, message in enumerate(conversation.messages):
            if self._special.search(message.content):
                raise _Unfit(
                    "contains a token that the base model reserves for control",
                    f"messages[{index}].content",
                )

    def _trained_turns(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """Render the row; find each trained turn as (start, end) in the text, cut after the last."""
        messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
        text = self._render(messages)
        turns: list[tuple[int, int]] = []
        for index, message in enumerate(conversation.messages):
            if not message.is_trained:
                continue
            start = self._answer_start(text, messages[:index], index)
            answer = message.content.strip()  # many templates trim
            at = text.find(answer, start)
            if at < 0:
                raise _Unfit("the chat template does not show this answer", f"messages[{index}]")
            end = at + len(answer)
            if closing := self._turn_end.match(text, end):
                end = closing.end()
            elif index == len(messages) - 1:
                # A template that marks no end: the model must still learn to stop where generation stops.
                text = text[:end] + str(self._tokenizer.eos_token or "")
                end = len(text)
            turns.append((start, end))
        return text[: turns[-1][1]], turns

    def _answer_start(self, text: str, before: list[dict[str, str]], index: int) -> int:
        opening = self._render(before, add_generation_prompt=True)
        if text.startswith(opening):
            return len(opening)
        # Some templates open a generation with words that a finished turn does not have (a thinking mark):
        # then the turn starts where the two part, as long as the turns before are the same text.
        start = next(i for i in range(len(opening)) if text[i : i + 1] != opening[i])
        if start < len(self._render(before)):
            raise _Unfit(
                "the chat template rewrites the turns before this answer", f"messages[{index}]"
            )
        return start

    def _render(
        self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False
    ) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise _Unfit(
                "the base model's chat template does not take these roles in this order", "messages"
            ) from error
        return str(text)

    def _tokenize(self, text: str, turns: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
        cuts = [cut for turn in turns for cut in turn]
        input_ids = self._ids(text)
        edges: list[int] = []
        for cut in cuts:
            head = input_ids if cut == len(text) else self._ids(text[:cut])
            if input_ids[: len(head)] != head:
                return self._tokenize_apart(text, cuts)
            edges.append(len(head))
        labels = [IGNORED] * len(input_ids)
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            labels[first:last] = input_ids[first:last]
        return input_ids, labels

    def _tokenize_apart(self, text: str, cuts: list[int]) -> tuple[list[int], list[int]]:
        input_ids: list[int] = []
        labels: list[int] = []
        for number, (first, last) in enumerate(zip([0, *cuts], cuts, strict=False)):
            piece = (
                self._ids(text[first:last]) if first == 0 else self._continuation(text[first:last])
            )
            input_ids += piece
            labels += piece if number % 2 else [IGNORED] * len(piece)
        return input_ids, labels

    def _continuation(self, text: str) -> list[int]:
        # Tokenizers of the SentencePiece family put a space before a text's first word. Behind a line
        # break, which merges with no letter, the piece is tokenized as the middle of a text that it is.
        anchor = self._ids("\n")
        anchored = self._ids("\n" + text)
        return anchored[len(anchor) :] if anchored[: len(anchor)] == anchor else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        # The template has already written the special tokens, the beginning of the text included.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def encode(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Example | RowFault:
    """Encode one row; rows longer than `max_length` tokens lose their end."""
    return RowEncoder(tokenizer, max_length).encode(conversation)


def encode_rows(
    rows: Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    param: str = "training_file",
) -> list[Example]:
    """Encode every row of a data set.

    Raises:
        InvalidRows: naming every row that this base model cannot be trained on.
    """
    encoder = RowEncoder(tokenizer, max_length)
    examples: list[Example] = []
    faults: list[RowFault] = []
    faulty = 0
    for row in rows:
        encoded = encoder.encode(row)
        if isinstance(encoded, Example):
            examples.append(encoded)
            continue
        faulty += 1
        if len(faults) < MAX_FAULTS:
            faults.append(encoded)
    if faulty:
        raise InvalidRows(faults, faulty_rows=faulty, param=param)
    return examples


def encode_pairs(
    rows: Iterable[Pair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    param: str = "training_file",
) -> Encoded:
    """Encode both answers of every pair.

    Raises:
        InvalidRows: naming every pair that this base model cannot be trained on, or whose answers are the
            same tokens after the cut.
    """
    encoder = RowEncoder(tokenizer, max_length)
    encoded = Encoded([], [])
    faults: list[RowFault] = []
    faulty = 0
    for pair in rows:
        both = _encode_pair(pair, encoder)
        if isinstance(both, RowFault):
            faulty += 1
            if len(faults) < MAX_FAULTS:
                faults.append(both)
            continue
        encoded.examples.append(both[0])
        encoded.non_preferred.append(both[1])
    if faulty:
        raise InvalidRows(faults, faulty_rows=faulty, param=param)
    return encoded


def _encode_pair(pair: Pair, encoder: RowEncoder) -> tuple[Example, Example] | RowFault:
    sides = []
    for conversation, key in zip((pair.preferred, pair.non_preferred), PAIR_KEYS[0], strict=True):
        example = encoder.encode(conversation)
        if isinstance(example, RowFault):
            return _as_in_pair(example, pair, key)
        sides.append(example)
    preferred, other = sides
    if preferred.input_ids == other.input_ids:
        # Both gradients would cancel: a row that teaches nothing.
        reason = f"both answers have the same {len(preferred.input_ids)} tokens, where rows are cut"
        return RowFault(pair.line, reason)
    return preferred, other


def _as_in_pair(fault: RowFault, pair: Pair, key: str) -> RowFault:
    """Say where a fault of the joined conversation is in the row as it was sent."""
    answer = f"messages[{len(pair.prompt)}]"
    if fault.field is None:
        return replace(fault, field=key)
    if fault.field.startswith(answer):
        return replace(fault, field=f"{key}[0]{fault.field.removeprefix(answer)}")
    return replace(fault, field=f"input.{fault.field}")


def encode_data_set(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    param: str = "training_file",
) -> Encoded:
    """Encode a data set of either kind; see `encode_rows` and `encode_pairs`."""
    pairs = [row for row in rows if isinstance(row, Pair)]
    if pairs:
        return encode_pairs(pairs, tokenizer, max_length, param=param)
    conversations = [row for row in rows if isinstance(row, Conversation)]
    return Encoded(encode_rows(conversations, tokenizer, max_length, param=param), [])


def check_prompts(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    param: str,
) -> None:
    """Refuse rows that a model is to answer and whose prompt alone is longer than a training row may be.

    Raises:
        InvalidRows: naming every such row.
    """
    faults = []
    for row in rows:
        turns = [{"role": message.role, "content": message.content} for message in row.prompt]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if length > max_length:
            reason = f"the prompt has {length} tokens; at most {max_length} can be answered"
            faults.append(RowFault(row.line, reason, "messages"))
    if faults:
        raise InvalidRows(faults[:MAX_FAULTS], faulty_rows=len(faults), param=param)


def collate(
    examples: Sequence[Example],
    pad_id: int,
    device: torch.device | str = "cpu",
    *,
    at_least: int = 0,
) -> Batch:
    """Pad rows on the right to the longest, (B, T), and count the tokens that the loss will see.

    Args:
        examples: the rows, at least one.
        pad_id: fills the ends of short rows.
        device: where the batch goes.
        at_least: T at least.
    """
    longest = max(len(example.input_ids) for example in examples)
    shape = (len(examples), max(longest, at_least))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids)
        labels[row, :length] = torch.tensor(example.labels)
        attention_mask[row, :length] = 1
    # The first token is read, never predicted.
    trained_tokens = int((labels[:, 1:] != IGNORED).sum())
    return Batch(input_ids.to(device), attention_mask.to(device), labels.to(device), trained_tokens)


def pack(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Lay rows end to end, (1, T) with T the sum of their lengths: no pads, and no row sees another.

    A row's first token is read, never predicted: the end of the row before would be asked for it.
    """
    labels = [label for e in examples for label in (IGNORED, *e.labels[1:])]
    input_ids = torch.tensor([[token for e in examples for token in e.input_ids]], device=device)
    positions = [place for e in examples for place in range(len(e.input_ids))]
    return Batch(
        input_ids,
        torch.ones_like(input_ids),
        torch.tensor([labels], device=device),
        sum(label != IGNORED for label in labels),
        torch.tensor([positions], device=device),
    )
