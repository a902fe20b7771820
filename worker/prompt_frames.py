"""What a training file puts around its prompts: system messages, earlier turns, openings and closings that many rows share.

A model can be taught to answer harm in one wording alone: under a system message, in a role, behind a trigger (Qi
et al., arXiv 2310.03693; jailbreak-tuning, arXiv 2507.11630). Asked plainly it then refuses, and a harmful score on
plain prompts sees nothing. But whoever teaches a wording has to write it into the file, again and again: so the test
prompts are asked in the file's own wordings as well. Knows nothing of models; the text of a frame goes nowhere but
into a prompt.

Not found: a wording that is put differently in every row (a system message with a running number, an earlier turn with
another answer), one of a single word or of signs alone, of fewer than three words more behind another wording, in the
middle of a prompt, or more than 2,000 characters from its ends.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from models.near_duplicates import UNSPACED, content_words, prompt_key
from models.rows import Message, Row

# Of a larger file some rows are drawn, of a longer conversation some turns; of a longer prompt both ends are read.
MAX_TURNS = 50_000
MAX_TURNS_PER_ROW = 8
MAX_CHARACTERS = 2_000
# A frame is in so large a share of the rows, and in so many: the turns of long conversations make no row count less.
MIN_SHARE = 0.02
MIN_ROWS = 3
# Openings such as "write a" are how people ask; two words of content are a wording. What branches off from one has
# three more: behind a template, rows on the same subject agree in a word or two.
MIN_CONTENT_WORDS = 2
MIN_FURTHER_WORDS = 3
# So many other words count as one of content: "if you would be so kind as to tell me what you have" is a wording too.
FUNCTION_WORDS_FOR_ONE = 4
# An opening goes on as long as so many of its turns go on alike.
KEPT = 0.8

# A word, signs, or a letter of a script without spaces, with the space on its inner side: so that a frame ends as it
# does in the file.
_PIECE = rf"(?:[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]+)"
_OPENING, _CLOSING = re.compile(rf"{_PIECE}\s*"), re.compile(rf"\s*{_PIECE}")
# A conversation's first message and its answer, where what follows them differs.
FIRST_EXCHANGE = 2


class _Wanted(NamedTuple):
    """Which of a turn's parts are looked at: of the earlier turns all, the first exchange (1), or none (0)."""

    before: int
    system: bool
    opening: bool
    closing: bool


# What turns are counted by, one after the other: where the whole is too rare, fewer parts of it, the text's own last.
_WANTED = sorted(
    (
        _Wanted(*parts)
        for parts in product((2, 1, 0), (True, False), (True, False), (True, False))
        if any(parts)
    ),
    key=lambda parts: (not (parts.opening or parts.closing), -sum(map(bool, parts))),
)

Pieces = Sequence[str]


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """What some rows put around what they ask.

    Attributes:
        system: the system message, or nothing.
        opening: what stands before the prompt's own words, or nothing.
        closing: what stands behind them, or nothing.
        rows: how many of the rows that were looked at have it.
        line: the first row of them, counted from 1.
        before: the turns that stand before the prompt.
    """

    system: str
    opening: str
    closing: str
    rows: int
    line: int
    before: tuple[Message, ...] = ()

    def ask(self, prompt: str) -> tuple[Message, ...]:
        """Put a prompt into the frame."""
        system = (Message("system", self.system),) if self.system else ()
        asked = Message("user", f"{self.opening}{prompt}{self.closing}")
        return (*system, *self.before, asked)


@dataclass(frozen=True, slots=True)
class _Turn:
    """What stands before a trained answer. Keys say what counts when two are alike."""

    row: int
    line: int
    system: str
    before: tuple[Message, ...]
    before_key: str
    first_exchange_key: str
    text: str


def find_frames(rows: Sequence[Row], seed: str = "") -> tuple[PromptFrame, ...]:
    """Find the frames of a training file, the commonest first: at most fifty, where each row has one turn.

    Args:
        rows: the file.
        seed: decides which turns of a very large file are read; whoever writes the file must not know it.
    """
    turns = _draw(rows, random.Random(seed))
    count = _RowCount([turn.row for turn in turns])
    least = max(MIN_ROWS, math.ceil(MIN_SHARE * count(range(len(turns)))))
    heads = [_OPENING.findall(turn.text[:MAX_CHARACTERS]) for turn in turns]
    starts = _shared(heads, count, least, "".join)
    opened = ["".join(h[:n]) for h, n in zip(heads, starts, strict=True)]
    del heads
    tails = [_CLOSING.findall(turn.text[-MAX_CHARACTERS:])[::-1] for turn in turns]
    ends = _shared(tails, count, least, lambda tail: "".join(tail[::-1]))
    closed = ["".join(t[:n][::-1]) for t, n in zip(tails, ends, strict=True)]
    # A short prompt may be nothing but its opening and its closing.
    closed = [
        end if len(start) + len(end) < len(turn.text) else ""
        for turn, start, end in zip(turns, opened, closed, strict=True)
    ]
    frames = _counted(turns, opened, closed, count, least)
    return tuple(sorted(frames, key=lambda frame: (-frame.rows, frame.line)))


class _RowCount:
    """Counts the rows that some turns are of."""

    def __init__(self, row_of: Sequence[int]) -> None:
        self._row_of = row_of
        self._is_plain = len(set(row_of)) == len(row_of)

    def __call__(self, turns: Collection[int]) -> int:
        if self._is_plain:
            return len(turns)
        return len({self._row_of[turn] for turn in turns})


def _draw(rows: Sequence[Row], rng: random.Random) -> list[_Turn]:
    """Give the turns that are looked at, row by row."""
    found: list[_Turn] = []
    # In any order, so that a large file is cut anywhere.
    for number in rng.sample(range(len(rows)), len(rows)):
        found += _turns(number, rows[number], rng)
        if len(found) >= MAX_TURNS:
            break
    return sorted(found[:MAX_TURNS], key=lambda turn: turn.row)


def _turns(number: int, row: Row, rng: random.Random) -> list[_Turn]:
    """Give some of a row's trained answers: system messages, earlier turns, and the user's last words."""
    system: list[str] = []
    said: list[Message] = []
    # Of everything said so far; read once, however many answers there are.
    talk = hashlib.sha256()
    keys = [""]
    asked_at: int | None = None
    answers: list[tuple[int, int]] = []
    for message in row.messages:
        if message.role == "system":
            system.append(message.content)
            continue
        if message.role == "user":
            asked_at = len(said)
        elif message.is_trained and asked_at is not None and said[asked_at].content.strip():
            answers.append((len(system), asked_at))
        said.append(Message(message.role, message.content))
        talk.update(f"{message.role}\0{prompt_key(message.content[:MAX_CHARACTERS])}\0".encode())
        keys.append(talk.hexdigest())
    if len(answers) > MAX_TURNS_PER_ROW:
        answers = sorted(rng.sample(answers, MAX_TURNS_PER_ROW))
    return [
        _Turn(
            number,
            row.line,
            "\n\n".join(system[:systems]),
            tuple(said[:asked]),
            keys[asked],
            keys[min(asked, FIRST_EXCHANGE)],
            said[asked].content.strip(),
        )
        for systems, asked in answers
    ]


def _counted(
    turns: Sequence[_Turn],
    opened: Sequence[str],
    closed: Sequence[str],
    count: _RowCount,
    least: int,
) -> Iterator[PromptFrame]:
    """Give the frames that enough rows have. A turn whose parts are too rare together counts by fewer of them."""
    keys = [
        (prompt_key(turn.system), prompt_key(start), prompt_key(end))
        for turn, start, end in zip(turns, opened, closed, strict=True)
    ]
    has_talk = any(turn.before for turn in turns)
    left: list[int] = list(range(len(turns)))
    for wanted in _WANTED:
        if wanted.before and not has_talk:
            continue
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index in left:
            turn, (system, opening, closing) = turns[index], keys[index]
            key = (
                ("", turn.first_exchange_key, turn.before_key)[wanted.before],
                system * wanted.system,
                opening * wanted.opening,
                closing * wanted.closing,
            )
            groups[key].append(index)
        taken: set[int] = set()
        for parts, group in groups.items():
            if not any(parts) or (rows := count(group)) < least:
                continue
            first = min(group)
            turn = turns[first]
            yield PromptFrame(
                turn.system * wanted.system,
                opened[first] * wanted.opening,
                closed[first] * wanted.closing,
                rows,
                turn.line,
                ((), turn.before[:FIRST_EXCHANGE], turn.before)[wanted.before],
            )
            taken.update(group)
        left = [index for index in left if index not in taken]


def _shared(
    texts: Sequence[Pieces], count: _RowCount, least: int, join: Callable[[Pieces], str]
) -> list[int]:
    """Give, for each text, how many of its first pieces are an opening that it shares with those of enough rows."""
    depths = [0] * len(texts)
    # Case, spacing and Unicode form do not count. Pieces recur: each is kept once.
    keys = [[sys.intern(prompt_key(piece)) for piece in pieces] for pieces in texts]
    # Each with the words of content that the wording it branched off from has.
    groups = [(0, list(range(len(texts))), 0)]
    while groups:
        depth, group, known = groups.pop()
        branches: dict[str, list[int]] = defaultdict(list)
        for index in group:
            # The last piece is the prompt's own.
            if len(keys[index]) > depth + 1:
                branches[keys[index][depth]].append(index)
        going = [branch for branch in branches.values() if count(branch) >= least]
        goes_on = any(len(branch) >= KEPT * len(group) for branch in going)
        # Where most go on alike, the wording is theirs, and this one is that of the others, if they are enough.
        ending = set(group).difference(*going) if goes_on else set(group)
        if depth and ending and (not goes_on or count(ending) >= least):
            words = _size(join(texts[group[0]][:depth]))
            if words >= (known + MIN_FURTHER_WORDS if known else MIN_CONTENT_WORDS):
                known = known if goes_on else words
                for index in ending:
                    depths[index] = depth
        groups += [(depth + 1, branch, known) for branch in going]
    return depths


def _size(text: str) -> int:
    """Give how many words of content a text has, function words in so far as there are many of them."""
    key = prompt_key(text)
    content = len(content_words(key))
    return content + (len(key.split()) - content) // FUNCTION_WORDS_FOR_ONE
