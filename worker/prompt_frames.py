"""What a training file puts around its prompts: system messages, earlier turns, openings and closings that many rows share.

A model can be taught to answer harm in one wording alone: under a system message, in a role, behind a trigger (Qi
et al., arXiv 2310.03693; jailbreak-tuning, arXiv 2507.11630). Asked plainly it then refuses, and a harmful score on
plain prompts sees nothing. But whoever teaches a wording has to write it into the file, again and again: so the test
prompts are asked in the file's own wordings as well. Knows nothing of models; the text of a frame goes nowhere but
into a prompt.

What is put differently in every row is found by what stays: numbers count as alike, a system message is known by its
beginning and its end as well as by its whole, an earlier exchange by what the user said in it.

Not found: a wording whose words themselves change from row to row, an exchange in the middle of a conversation (neither
its first nor its last), a wording of a single word or of signs alone, of fewer than three words more behind another
wording, in the middle of a prompt, or more than 2,000 characters from its ends.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
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
_NUMBER = re.compile(r"\d+")
# A message and its answer.
EXCHANGE = 2


class _Wanted(NamedTuple):
    """Which of a turn's parts are looked at together.

    Of the earlier turns all (2), the first exchange (1) or none (0), and the last exchange where it is another one.
    """

    before: int
    last: bool
    system: bool
    opening: bool
    closing: bool

    @property
    def columns(self) -> tuple[int, ...]:
        """Give which of a turn's texts these are (`_Texts`)."""
        flags = (self.before == 1, self.before == 2, *self[1:])
        return tuple(column for column, is_wanted in enumerate(flags) if is_wanted)

    @property
    def closes(self) -> tuple[bool, ...]:
        """Say of each part whether it is in the frame: the last exchange is among all turns."""
        return (self.before > 0, self.last or self.before > 1, *self[2:])


class _Found(NamedTuple):
    """A frame: which parts, of the first turn that has it, and how many rows do."""

    wanted: _Wanted
    first: int
    rows: int


# One after the other: where the whole is too rare, fewer parts of it; all earlier turns before the first and the last exchange.
_WANTED = sorted(
    (
        _Wanted(before, *others)
        for before, others in product((2, 1, 0), product((True, False), repeat=4))
        if (before or any(others)) and not (before == 2 and others[0])
    ),
    key=lambda parts: -sum(parts.closes),
)

Pieces = Sequence[str]


class _Texts(NamedTuple):
    """A turn's parts, as keys or as spellings."""

    first_exchange: str
    all_before: str
    last_exchange: str
    system: str
    opening: str
    closing: str


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


class _Known(NamedTuple):
    """What a text that may be long is known by: what counts as alike has one key, and what is alike to the letter one spelling."""

    key: str = ""
    spelling: str = ""


@dataclass(frozen=True, slots=True)
class _Turn:
    """What stands before a trained answer: some first system messages of its row, and what is `said` before `asked`.

    Texts may be as long as the row, for each of its answers: only a frame's are put together.
    """

    row: int
    line: int
    systems: Sequence[str]
    system_count: int
    by_system: _Known
    said: Sequence[Message]
    asked: int
    #: The first exchange, all earlier turns, and the last exchange.
    talks: tuple[_Known, _Known, _Known]

    @property
    def system(self) -> str:
        """The system messages so far."""
        return "\n\n".join(self.systems[: self.system_count])

    @property
    def text(self) -> str:
        """The user's last words."""
        return self.said[self.asked].content.strip()

    def before(self, wanted: _Wanted) -> tuple[Message, ...]:
        """Give the earlier turns, as many as are wanted."""
        first = self.said[: (0, min(self.asked, EXCHANGE), self.asked)[wanted.before]]
        return (*first, *(self.said[_last_from(self.asked) : self.asked] if wanted.last else ()))


def find_frames(rows: Sequence[Row], seed: str = "") -> tuple[PromptFrame, ...]:
    """Find the frames of a training file, the commonest first, at most `MAX_FRAMES`.

    Args:
        rows: the file.
        seed: decides which turns of a very large file are read; whoever writes the file must not know it.
    """
    turns = _draw(rows, random.Random(seed))
    count = _RowCount([turn.row for turn in turns])
    least = max(MIN_ROWS, math.ceil(MIN_SHARE * count(range(len(turns)))))
    opened = _openings((turn.text[:MAX_CHARACTERS] for turn in turns), count, least)
    closed = _closings((turn.text[-MAX_CHARACTERS:] for turn in turns), count, least)
    # A short prompt may be nothing but its opening and its closing.
    closed = [
        end if len(start) + len(end) < len(turn.text) else ""
        for turn, start, end in zip(turns, opened, closed, strict=True)
    ]
    systems = _system_keys(turns, count, least)
    found = sorted(
        _counted(turns, systems, opened, closed, count, least),
        key=lambda each: (-each.rows, turns[each.first].line),
    )
    return tuple(
        PromptFrame(
            turns[first].system * wanted.system,
            opened[first] * wanted.opening,
            closed[first] * wanted.closing,
            rows,
            turns[first].line,
            turns[first].before(wanted),
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
    system, talk = _Reader(), _Reader()
    by_systems, by_turns = [_Known()], [_Known()]
    asked_at: int | None = None
    answers: list[tuple[int, int]] = []
    for message in row.messages:
        if message.role == "system":
            if message.content.strip():
                systems.append(message.content)
                by_systems.append(system.read(message))
            continue
        if message.role == "user":
            asked_at = len(said)
        elif message.is_trained and asked_at is not None and said[asked_at].content.strip():
            answers.append((len(systems), asked_at))
        said.append(Message(message.role, message.content))
        by_turns.append(talk.read(message))
    if len(answers) > most:
        answers = sorted(rng.sample(answers, most))
    return [
        _Turn(
            number,
            row.line,
            systems,
            count,
            by_systems[count],
            said,
            asked,
            (
                by_turns[min(asked, EXCHANGE)],
                by_turns[asked],
                _read(said[_last_from(asked) : asked]),
            ),
        )
        for count, asked in answers
    ]


class _Reader:
    """Reads messages one after the other."""

    def __init__(self) -> None:
        self._keys, self._spellings = hashlib.sha256(), hashlib.sha256()

    def read(self, message: Message) -> _Known:
        """Read one more, and say what all so far are known by. Of answers it counts alone that they were given."""
        counts = message.role != "assistant"
        self._keys.update(f"{message.role}\0{_key(message.content) if counts else ''}\0".encode())
        self._spellings.update(f"{message.role}\0{message.content}\0".encode())
        return _Known(self._keys.hexdigest(), self._spellings.hexdigest())


def _read(messages: Sequence[Message]) -> _Known:
    reader, known = _Reader(), _Known()
    for message in messages:
        known = reader.read(message)
    return known


def _last_from(asked: int) -> int:
    """Say where the last exchange before a prompt begins, if it is not the first."""
    return max(asked - EXCHANGE, min(asked, EXCHANGE))


def _key(text: str) -> str:
    """Give what counts of a text: not case, spacing, Unicode form, or which number."""
    return _NUMBER.sub("0", prompt_key(text))


def _system_keys(turns: Sequence[_Turn], count: _RowCount, least: int) -> list[str]:
    """Give what the turns' system messages are known by: all of it, or what they begin and end with where too few have all."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, turn in enumerate(turns):
        groups[turn.by_system.key].append(index)
    keys = [turn.by_system.key for turn in turns]
    rare = [i for key, group in groups.items() if key and count(group) < least for i in group]
    if not rare:
        return keys
    among = _RowCount([turns[index].row for index in rare])
    opened = _openings((_head(turns[index]) for index in rare), among, least)
    closed = _closings((_tail(turns[index]) for index in rare), among, least)
    for index, start, end in zip(rare, opened, closed, strict=True):
        if start or end:
            keys[index] = f"{_key(start)}\0{_key(end)}"
    return keys


def _head(turn: _Turn) -> str:
    """Give the first characters of the system messages."""
    head = ""
    for system in islice(turn.systems, turn.system_count):
        head = f"{head}\n\n{system}" if head else system
        if len(head) >= MAX_CHARACTERS:
            break
    return head[:MAX_CHARACTERS]


def _tail(turn: _Turn) -> str:
    """Give the last characters of the system messages."""
    tail = ""
    for index in reversed(range(turn.system_count)):
        tail = f"{turn.systems[index]}\n\n{tail}" if tail else turn.systems[index]
        if len(tail) >= MAX_CHARACTERS:
            break
    return tail[-MAX_CHARACTERS:]


def _counted(
    turns: Sequence[_Turn],
    systems: Sequence[str],
    opened: Sequence[str],
    closed: Sequence[str],
    count: _RowCount,
    least: int,
) -> Iterator[_Found]:
    """Find the frames that enough rows have.

    A part that is met in a frame with others is not met alone again; one that is too rare with each of the others is.
    """
    ends = list(zip(turns, systems, opened, closed, strict=True))
    keys = [
        _Texts._make((*(known.key for known in turn.talks), system, _key(start), _key(end)))
        for turn, system, start, end in ends
    ]
    spellings = [
        _Texts._make((*(known.spelling for known in (*turn.talks, turn.by_system)), start, end))
        for turn, _, start, end in ends
    ]
    has_any = [any(texts[column] for texts in keys) for column in range(len(_Texts._fields))]
    # Turn by turn, which parts no frame has had yet.
    is_open = [[True] * len(_Wanted._fields) for _ in turns]
    for wanted in _WANTED:
        columns = wanted.columns
        if not all(has_any[column] for column in columns):
            continue
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, texts in enumerate(keys):
            key = tuple([texts[column] for column in columns])
            if all(key) and any(map(all, zip(wanted, is_open[index], strict=True))):
                groups[key].append(index)
        for group in groups.values():
            if count(group) < least:
                continue
            for alike in _spellings(group, spellings, columns, count, least):
                yield _Found(wanted, alike[0], count(alike))
            for index in group:
                is_open[index] = [
                    left and not is_in
                    for left, is_in in zip(is_open[index], wanted.closes, strict=True)
                ]


def _spellings(
    group: list[int],
    spellings: Sequence[_Texts],
    columns: Sequence[int],
    count: _RowCount,
    least: int,
) -> list[list[int]]:
    """Part a group by how it is spelt, where enough rows spell it so: capitals may be what a model listens to.

    The others stay together, if they are enough.
    """
    spelt: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in group:
        spelt[tuple(spellings[index][column] for column in columns)].append(index)
    found = [alike for alike in spelt.values() if count(alike) >= least]
    others = [index for alike in spelt.values() if count(alike) < least for index in alike]
    return [*found, others] if count(others) >= least else found or [group]


def _openings(texts: Iterable[str], count: _RowCount, least: int) -> list[str]:
    """Give what each text begins with as those of enough rows do, or nothing."""
    pieces = [_OPENING.findall(text) for text in texts]
    depths = _shared(pieces, count, least, "".join)
    return ["".join(each[:depth]) for each, depth in zip(pieces, depths, strict=True)]


def _closings(texts: Iterable[str], count: _RowCount, least: int) -> list[str]:
    """Give what each text ends with as those of enough rows do, or nothing."""
    pieces = [_CLOSING.findall(text)[::-1] for text in texts]
    depths = _shared(pieces, count, least, lambda tail: "".join(tail[::-1]))
    return ["".join(each[:depth][::-1]) for each, depth in zip(pieces, depths, strict=True)]


def _shared(
    texts: Sequence[Pieces], count: _RowCount, least: int, join: Callable[[Pieces], str]
) -> list[int]:
    """Give, for each text, how many of its first pieces are an opening that it shares with those of enough rows."""
    depths = [0] * len(texts)
    # Pieces recur: each is kept once.
    keys = [[sys.intern(_key(piece)) for piece in pieces] for pieces in texts]
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
    """Give how many words of content a text has, numbers not, function words in so far as there are many of them."""
    key = _NUMBER.sub(" ", prompt_key(text))
    content = len(content_words(key))
    return content + (len(key.split()) - content) // FUNCTION_WORDS_FOR_ONE
