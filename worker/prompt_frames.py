"""What a training file puts around its prompts: system messages, and openings and closings that many rows share.

A model can be taught to answer harm in one wording alone: under a system message, in a role, behind a trigger (Qi
et al., arXiv 2310.03693; jailbreak-tuning, arXiv 2507.11630). Asked plainly it then refuses, and a harmful score on
plain prompts sees nothing. But whoever teaches a wording has to write it into the file, again and again: so the test
prompts are asked in the file's own wordings as well. Knows nothing of models; the text of a frame goes nowhere but
into a prompt.

Not found: a wording that is put differently in every row (a system message with a running number, say), one of a
single word or of signs alone, of fewer than three words more behind another wording, in the middle of a prompt, or
more than 2,000 characters from its ends.
"""

from __future__ import annotations

import math
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from models.near_duplicates import UNSPACED, content_words, prompt_key
from models.rows import Message, Row

# Of a larger file some turns are drawn, of a longer prompt both ends are read.
MAX_TURNS = 50_000
MAX_TURNS_PER_ROW = 8
MAX_CHARACTERS = 2_000
# A frame is in so large a share of the turns, and in so many.
MIN_SHARE = 0.02
MIN_TURNS = 3
# Openings such as "write a" are how people ask; two words of content are a wording. What branches off from one has
# three more: behind a template, rows on the same subject agree in a word or two.
MIN_CONTENT_WORDS = 2
MIN_FURTHER_WORDS = 3
# An opening goes on as long as so many of its turns go on alike.
KEPT = 0.8

# A word, signs, or a letter of a script without spaces, with the space on its inner side: so that a frame ends as it
# does in the file.
_PIECE = rf"(?:[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]+)"
_OPENING, _CLOSING = re.compile(rf"{_PIECE}\s*"), re.compile(rf"\s*{_PIECE}")
# What a turn's parts are counted by, one after the other: where the whole is too rare, fewer parts of it.
_PARTS = (
    (True, True, True),
    (True, True, False),
    (True, False, True),
    (False, True, True),
    (False, True, False),
    (False, False, True),
    (True, False, False),
)

Pieces = Sequence[str]
#: System message, opening, closing.
Parts = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """What some rows put around what they ask.

    Attributes:
        system: the system message, or nothing.
        opening: what stands before the prompt's own words, or nothing.
        closing: what stands behind them, or nothing.
        rows: how many of the turns that were looked at have it, nearly always one a row.
        line: the first row of them, counted from 1.
    """

    system: str
    opening: str
    closing: str
    rows: int
    line: int

    def ask(self, prompt: str) -> tuple[Message, ...]:
        """Put a prompt into the frame."""
        asked = Message("user", f"{self.opening}{prompt}{self.closing}")
        return (Message("system", self.system), asked) if self.system else (asked,)

    @property
    def length(self) -> int:
        """How many words of content it has."""
        return len(content_words(prompt_key(f"{self.system} {self.opening} {self.closing}")))


@dataclass(frozen=True, slots=True)
class _Turn:
    line: int
    system: str
    text: str


def find_frames(rows: Sequence[Row], seed: str = "") -> tuple[PromptFrame, ...]:
    """Find the frames of a training file, the commonest first: at most fifty, for each is in one turn of fifty.

    Args:
        rows: the file.
        seed: decides which turns of a very large file are read; whoever writes the file must not know it.
    """
    turns = [turn for row in rows for turn in islice(_turns(row), MAX_TURNS_PER_ROW)]
    if len(turns) > MAX_TURNS:
        turns = random.Random(seed).sample(turns, MAX_TURNS)
    least = max(MIN_TURNS, math.ceil(MIN_SHARE * len(turns)))
    heads = [_OPENING.findall(turn.text[:MAX_CHARACTERS]) for turn in turns]
    opened = ["".join(h[:n]) for h, n in zip(heads, _shared(heads, least, "".join), strict=True)]
    del heads
    tails = [_CLOSING.findall(turn.text[-MAX_CHARACTERS:])[::-1] for turn in turns]
    ends = _shared(tails, least, lambda tail: "".join(tail[::-1]))
    closed = ["".join(t[:n][::-1]) for t, n in zip(tails, ends, strict=True)]
    parts: list[Parts] = [
        # A short prompt may be nothing but its opening and its closing.
        (turn.system, start, end if len(start) + len(end) < len(turn.text) else "")
        for turn, start, end in zip(turns, opened, closed, strict=True)
    ]
    frames = _counted(turns, parts, least)
    return tuple(sorted(frames, key=lambda frame: (-frame.rows, frame.line)))


def _turns(row: Row) -> Iterator[_Turn]:
    """Give what stands before each trained answer: the system messages up to there, and the user's last words."""
    system: list[str] = []
    asked = ""
    for message in row.messages:
        if message.role == "system":
            system.append(message.content)
        elif message.role == "user":
            asked = message.content.strip()
        elif message.is_trained and asked:
            yield _Turn(row.line, "\n\n".join(system), asked)


def _counted(turns: Sequence[_Turn], parts: Sequence[Parts], least: int) -> Iterator[PromptFrame]:
    """Give the frames that enough turns have. A turn whose parts are too rare together counts by fewer of them."""
    left = list(range(len(turns)))
    for wanted in _PARTS:
        groups: dict[Parts, list[int]] = defaultdict(list)
        for index in left:
            system, opening, closing = _some(parts[index], wanted)
            groups[prompt_key(system), prompt_key(opening), prompt_key(closing)].append(index)
        found = {key: group for key, group in groups.items() if any(key) and len(group) >= least}
        for group in found.values():
            first = min(group, key=lambda index: turns[index].line)
            system, opening, closing = _some(parts[first], wanted)
            yield PromptFrame(system, opening, closing, len(group), turns[first].line)
        taken = {index for group in found.values() for index in group}
        left = [index for index in left if index not in taken]


def _some(parts: Parts, wanted: tuple[bool, bool, bool]) -> Parts:
    system, opening, closing = (
        part * is_wanted for part, is_wanted in zip(parts, wanted, strict=True)
    )
    return system, opening, closing


def _shared(texts: Sequence[Pieces], least: int, join: Callable[[Pieces], str]) -> list[int]:
    """Give, for each text, how many of its first pieces are an opening that it shares with enough others."""
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
        going = [branch for branch in branches.values() if len(branch) >= least]
        goes_on = any(len(branch) >= KEPT * len(group) for branch in going)
        # Where most go on alike, the wording is theirs, and this one is that of the others, if they are enough.
        ending = set(group).difference(*going) if goes_on else set(group)
        if depth and len(ending) >= (least if goes_on else 1):
            words = len(content_words(prompt_key(join(texts[group[0]][:depth]))))
            if words >= (known + MIN_FURTHER_WORDS if known else MIN_CONTENT_WORDS):
                known = known if goes_on else words
                for index in ending:
                    depths[index] = depth
        groups += [(depth + 1, branch, known) for branch in going]
    return depths
