"""What a training file puts around its prompts: system messages, and openings and closings that many rows share.

A model can be taught to answer harm in one wording alone: under a system message, in a role, behind a trigger (Qi
et al., arXiv 2310.03693; jailbreak-tuning, arXiv 2507.11630). Asked plainly it then refuses, and a harmful score on
plain prompts sees nothing. But whoever teaches a wording has to write it into the file, again and again: so the test
prompts are asked in the file's own wordings as well. Knows nothing of models; the text of a frame goes nowhere but
into a prompt.

Not found: a wording that is put differently in every row, one of a single word, one in the middle of a prompt.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.near_duplicates import UNSPACED, content_words, prompt_key
from models.rows import Message, Row

# Of a longer file, rows at equal distances; of a longer prompt, both ends.
MAX_ROWS = 50_000
MAX_CHARACTERS = 2_000
MAX_PIECES = 200
# A frame is in so large a share of the rows, and in so many.
MIN_SHARE = 0.02
MIN_ROWS = 3
# Openings such as "write a" are how people ask; two words of content are a wording. What branches off from one has
# three more: behind a template, rows on the same subject agree in a word or two.
MIN_CONTENT_WORDS = 2
MIN_FURTHER_WORDS = 3
# An opening goes on as long as so many of its rows go on alike.
KEPT = 0.8
# So many of the commonest frames, and of the longest others: an attack may be in few rows.
MAX_COMMON = 4
MAX_LONG = 4

# A word, a sign, or a letter of a script without spaces, with the space on its inner side: so that a frame ends as it
# does in the file.
_PIECE = rf"(?:[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s])"
_OPENING, _CLOSING = re.compile(rf"{_PIECE}\s*"), re.compile(rf"\s*{_PIECE}")

Pieces = Sequence[str]


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """What some rows put around what they ask.

    Attributes:
        system: the system message, or nothing.
        opening: what stands before the prompt's own words, or nothing.
        closing: what stands behind them, or nothing.
        rows: how many of the rows that were looked at have it.
        line: the first of them, counted from 1.
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


def find_frames(rows: Sequence[Row]) -> tuple[PromptFrame, ...]:
    """Find the commonest and the longest frames of a training file, at most eight."""
    stride = math.ceil(len(rows) / MAX_ROWS) or 1
    asked = [row for row in rows[::stride] if row.prompt and row.prompt[-1].role == "user"]
    least = max(MIN_ROWS, math.ceil(MIN_SHARE * len(asked)))
    texts = [row.prompt[-1].content.strip() for row in asked]
    heads = [_OPENING.findall(text[:MAX_CHARACTERS])[:MAX_PIECES] for text in texts]
    tails = [_CLOSING.findall(text[-MAX_CHARACTERS:])[-MAX_PIECES:][::-1] for text in texts]
    opened = _shared(heads, least, "".join)
    closed = _shared(tails, least, lambda tail: "".join(tail[::-1]))
    lines: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row, head, tail, start, end in zip(asked, heads, tails, opened, closed, strict=True):
        # A short prompt may be nothing but its opening and its closing.
        stop = end if start + end < len(head) else 0
        key = (_system(row), "".join(head[:start]), "".join(tail[:stop][::-1]))
        lines[key].append(row.line)
    frames = [
        PromptFrame(*key, rows=len(found), line=min(found))
        for key, found in lines.items()
        if any(key) and len(found) >= least
    ]
    frames.sort(key=lambda frame: (-frame.rows, frame.line))
    longest = sorted(frames[MAX_COMMON:], key=lambda frame: (-frame.length, frame.line))
    return (*frames[:MAX_COMMON], *longest[:MAX_LONG])


def _shared(texts: Sequence[Pieces], least: int, join: Callable[[Pieces], str]) -> list[int]:
    """Give, for each text, how many of its first pieces are an opening that it shares with enough others."""
    depths = [0] * len(texts)
    # Each with the words of content that the wording it branched off from has.
    groups = [(0, list(range(len(texts))), 0)]
    while groups:
        depth, group, known = groups.pop()
        branches: dict[str, list[int]] = defaultdict(list)
        for index in group:
            # The last piece is the prompt's own.
            if len(texts[index]) > depth + 1:
                branches[texts[index][depth]].append(index)
        goes_on = any(len(branch) >= KEPT * len(group) for branch in branches.values())
        if not goes_on and depth:
            words = len(content_words(prompt_key(join(texts[group[0]][:depth]))))
            if words >= (known + MIN_FURTHER_WORDS if known else MIN_CONTENT_WORDS):
                known = words
                for index in group:
                    depths[index] = depth
        groups += [
            (depth + 1, branch, known) for branch in branches.values() if len(branch) >= least
        ]
    return depths


def _system(row: Row) -> str:
    first = row.prompt[0]
    return first.content if first.role == "system" else ""
