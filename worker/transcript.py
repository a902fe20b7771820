"""From tokens to the text of one answer: whole characters, up to a stop word, with what each token weighed.

Knows nothing of models; a token's number and the weights that a model gave it come in, pieces of text go
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# What a decoder shows for bytes that are no whole character yet. None has more bytes than four.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Weighed:
    """A generated token and its log probability, with the most probable ones at its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to be shown, and the tokens that it begins with or holds."""

    text: str
    tokens: tuple[Weighed, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class Transcript:
    """One answer as it grows. Text that could be the beginning of a stop word is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        """Begin with nothing."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        #: Where the tokens begin that are decoded with new ones, and where those end that are text.
        self._context = self._decoded = 0
        self._text = ""
        self._told = 0
        self._waiting: list[tuple[int, Weighed]] = []
        #: Whether a stop word was found; nothing may be added then.
        self.is_cut = False

    def add(self, token_id: int, weighed: Weighed | None = None) -> Piece:
        """Take the next token; give what may be shown because of it."""
        self._ids.append(token_id)
        if weighed is not None:
            self._waiting.append((len(self._text), weighed))
        self._decode(is_last=False)
        return self._show(len(self._text) - self._held())

    def end(self) -> Piece:
        """Give all that was held back."""
        self._decode(is_last=True)
        piece = self._show(len(self._text))
        if self.is_cut:
            return piece
        rest = tuple(weighed for _, weighed in self._waiting)
        self._waiting.clear()
        return Piece(piece.text, piece.tokens + rest)

    def _decode(self, *, is_last: bool) -> None:
        # With some tokens before the new ones, because many tokenizers drop a leading space.
        known = self._plain(self._ids[self._context : self._decoded])
        now = self._plain(self._ids[self._context :])
        is_unfinished = now.endswith(UNFINISHED) and (
            len(self._ids) - self._decoded <= MAX_CHARACTER_BYTES
        )
        if len(now) > len(known) and (is_last or not is_unfinished):
            self._text += now[len(known) :]
            self._context, self._decoded = self._decoded, len(self._ids)

    def _plain(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _held(self) -> int:
        new = self._text[self._told :]
        return max(
            (
                size
                for word in self._stop
                for size in range(1, len(word))
                if new.endswith(word[:size])
            ),
            default=0,
        )

    def _show(self, until: int) -> Piece:
        found = [i for word in self._stop if (i := self._text.find(word, self._told)) >= 0]
        if found:
            self.is_cut = True
            until = min(found)
        text = self._text[self._told : until]
        self._told = until
        shown = [weighed for start, weighed in self._waiting if start < until]
        self._waiting = [] if self.is_cut else self._waiting[len(shown) :]
        return Piece(text, tuple(shown))
