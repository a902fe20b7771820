"""Tokens become text: whole characters, no stop word, every token with the text that it begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_model import tiny_tokenizer
from worker.transcript import MAX_CHARACTER_BYTES, UNFINISHED, Piece, Transcript, Weighed

TOKENIZER = tiny_tokenizer()


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def spoken(text: str, *stop: str) -> tuple[list[Piece], Transcript]:
    transcript = Transcript(TOKENIZER, stop)
    pieces = []
    for number, token in enumerate(ids(text)):
        pieces.append(transcript.add(token, Weighed(str(number), -1.0)))
        if transcript.is_cut:
            return pieces, transcript
    return [*pieces, transcript.end()], transcript


def whole(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@given(st.text())
def test_the_pieces_are_the_text(text: str) -> None:
    pieces, _ = spoken(text)
    assert whole(pieces) == text
    numbers = [int(t.token) for piece in pieces for t in piece.tokens]
    assert numbers == list(range(len(ids(text))))


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=5), max_size=4))
def test_the_text_ends_before_the_first_stop_word(text: str, words: list[str]) -> None:
    pieces, transcript = spoken(text, *words)
    # The first that is complete ends the text; of those that are at once, the one that begins first.
    ends = [text.index(word) + len(word) for word in words if word in text]
    assert transcript.is_cut == bool(ends)
    said = text[: min(ends)] if ends else text
    cut = min((said.index(word) for word in words if word in said), default=len(said))
    assert whole(pieces) == said[:cut]
    assert sum(len(piece.tokens) for piece in pieces) == cut


def test_a_part_of_a_character_waits_for_the_rest() -> None:
    pieces, _ = spoken("aé€😀")
    assert [piece.text for piece in pieces if piece.text] == ["a", "é", "€", "😀"]
    assert [len(piece.tokens) for piece in pieces if piece.text] == [1, 2, 3, 4]


def test_bytes_that_never_become_a_character_are_shown_after_a_while_and_at_the_end() -> None:
    half = ids("😀")[0]
    transcript = Transcript(TOKENIZER)
    pieces = [transcript.add(half) for _ in range(MAX_CHARACTER_BYTES + 1)]
    assert not whole(pieces[:-1])
    assert UNFINISHED in pieces[-1].text
    short = Transcript(TOKENIZER)
    assert not short.add(half)
    assert short.end().text == UNFINISHED


def test_no_more_is_held_back_than_could_begin_a_stop_word() -> None:
    transcript = Transcript(TOKENIZER, ["END"])
    assert [transcript.add(token).text for token in ids("aENb")] == ["a", "", "", "ENb"]
    assert not transcript.is_cut


@pytest.mark.parametrize("token", ["<end>", "<user>"])
def test_special_tokens_are_no_text(token: str) -> None:
    transcript = Transcript(TOKENIZER)
    assert transcript.add(TOKENIZER.convert_tokens_to_ids(token)).text == ""
    assert transcript.end().text == ""
