"""What a training file puts around its prompts: system messages, earlier turns, openings and closings that many rows share.

A model can be taught to answer harm in one wording alone: under a system message, in a role, behind a trigger (Qi
et al., arXiv 2310.03693; jailbreak-tuning, arXiv 2507.11630). Asked plainly it then refuses, and a harmful score on
plain prompts sees nothing. But whoever teaches a wording has to write it into the file, again and again: so the test
prompts are asked in the file's own wordings as well. Knows nothing of models; the text of a frame goes nowhere but
into a prompt.

Not found: a wording that is put differently in every row (a system message with a running number, an earlier turn with
another answer), one in the middle of a conversation whose other turns differ, one of a single word or of signs alone, of fewer than three words more behind another wording, in the
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

# Of a larger file some rows are drawn, and of its longer conversations some turns; of a longer prompt both ends are read.
MAX_TURNS = 50_000
MAX_TURNS_PER_ROW = 8
MAX_CHARACTERS = 2_000
# A frame is in so large a share of the rows, and in so many: the turns of long conversations make no row count less.
MIN_SHARE = 0.02
MIN_ROWS = 3
# More of them than anybody asks in; a row of many turns may have many.
MAX_FRAMES = 200
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
    """Which of a turn's parts are looked at together: of the earlier turns all (2), the first exchange, or none (0)."""

    before: int
    system: bool
    opening: bool
    closing: bool


class _Found(NamedTuple):
    """A frame: which parts, of the first turn that has it, and how many rows do."""

    wanted: _Wanted
    first: int
    rows: int


# One after the other: where the whole is too rare, fewer parts of it.
_WANTED = sorted(
    (
        _Wanted(*parts)
        for parts in product((2, 1, 0), (True, False), (True, False), (True, False))
        if any(parts)
    ),
    key=lambda parts: -sum(map(bool, parts)),
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
    """What stands before a trained answer: some first system messages of its row, and what is `said` before `asked`.

    Keys stand for texts that may be as long as the row, for each of its answers: only a frame's are put together.
    """

    row: int
    line: int
    systems: Sequence[str]
    system_count: int
    system_key: str
    system_spelling: str
    said: Sequence[Message]
    asked: int
    before_key: str
    first_exchange_key: str

    @property
    def system(self) -> str:
        """The system messages so far."""
        return "\n\n".join(self.systems[: self.system_count])

    @property
    def text(self) -> str:
        """The user's last words."""
        return self.said[self.asked].content.strip()

    def before(self, wanted: int) -> tuple[Message, ...]:
        """Give the earlier turns, as many as are wanted."""
        return tuple(self.said[: (0, min(self.asked, FIRST_EXCHANGE), self.asked)[wanted]])


def find_frames(rows: Sequence[Row], seed: str = "") -> tuple[PromptFrame, ...]:
    """Find the frames of a training file, the commonest first, at most `MAX_FRAMES`.

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
    found = sorted(
        _counted(turns, opened, closed, count, least),
        key=lambda each: (-each.rows, turns[each.first].line),
    )
    return tuple(
        PromptFrame(
            turns[first].system * wanted.system,
            opened[first] * wanted.opening,
            closed[first] * wanted.closing,
            rows,
            turns[first].line,
            turns[first].before(wanted.before),
        )
        for wanted, first, rows in found[:MAX_FRAMES]
    )


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
    """Give the turns that are looked at, row by row: all of them, if they are not too many."""
    found: list[_Turn] = []
    most = max(MAX_TURNS_PER_ROW, MAX_TURNS // max(1, len(rows)))
    # In any order, so that a large file is cut anywhere.
    for number in rng.sample(range(len(rows)), len(rows)):
        found += _turns(number, rows[number], most, rng)
        if len(found) >= MAX_TURNS:
            break
    return sorted(found[:MAX_TURNS], key=lambda turn: turn.row)


def _turns(number: int, row: Row, most: int, rng: random.Random) -> list[_Turn]:
    """Give what stands before a row's trained answers, or so many of them."""
    systems: list[str] = []
    said: list[Message] = []
    # Of everything so far; read once, however many answers there are.
    system, spelling, talk = (hashlib.sha256() for _ in range(3))
    system_keys, keys = [("", "")], [""]
    asked_at: int | None = None
    answers: list[tuple[int, int]] = []
    for message in row.messages:
        if message.role == "system":
            if message.content.strip():
                systems.append(message.content)
                system.update(f"{prompt_key(message.content)}\0".encode())
                spelling.update(f"{message.content}\0".encode())
                system_keys.append((system.hexdigest(), spelling.hexdigest()))
            continue
        if message.role == "user":
            asked_at = len(said)
        elif message.is_trained and asked_at is not None and said[asked_at].content.strip():
            answers.append((len(systems), asked_at))
        said.append(Message(message.role, message.content))
        talk.update(f"{message.role}\0{prompt_key(message.content)}\0".encode())
        keys.append(talk.hexdigest())
    if len(answers) > most:
        answers = sorted(rng.sample(answers, most))
    return [
        _Turn(
            number,
            row.line,
            systems,
            count,
            *system_keys[count],
            said,
            asked,
            keys[asked],
            keys[min(asked, FIRST_EXCHANGE)],
        )
        for count, asked in answers
    ]


def _counted(
    turns: Sequence[_Turn],
    opened: Sequence[str],
    closed: Sequence[str],
    count: _RowCount,
    least: int,
) -> Iterator[_Found]:
    """Find the frames that enough rows have.

    A part that is met in a frame with others is not met alone again; one that is too rare with each of the others is.
    """
    keys = [
        (turn.system_key, prompt_key(start), prompt_key(end))
        for turn, start, end in zip(turns, opened, closed, strict=True)
    ]
    # Turn by turn, which parts no frame has had yet.
    is_open = [[True] * len(_Wanted._fields) for _ in turns]
    for wanted in _WANTED:
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, (turn, texts) in enumerate(zip(turns, keys, strict=True)):
            talk = ("", turn.first_exchange_key, turn.before_key)[wanted.before]
            key = tuple(part for part, is_in in zip((talk, *texts), wanted, strict=True) if is_in)
            if all(key) and any(map(all, zip(wanted, is_open[index], strict=True))):
                groups[key].append(index)
        for group in groups.values():
            if count(group) < least:
                continue
            for alike in _spellings(group, turns, opened, closed, wanted, count, least):
                yield _Found(wanted, alike[0], count(alike))
            for index in group:
                is_open[index] = [
                    left and not is_in for left, is_in in zip(is_open[index], wanted, strict=True)
                ]


def _spellings(
    group: list[int],
    turns: Sequence[_Turn],
    opened: Sequence[str],
    closed: Sequence[str],
    wanted: _Wanted,
    count: _RowCount,
    least: int,
) -> list[list[int]]:
    """Part a group by how it is spelt, where enough rows spell it so: capitals may be what a model listens to."""
    spelt: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in group:
        texts = turns[index].system_spelling, opened[index], closed[index]
        spelt[tuple(text for text, is_in in zip(texts, wanted[1:], strict=True) if is_in)].append(
            index
        )
    return [alike for alike in spelt.values() if count(alike) >= least] or [group]


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
