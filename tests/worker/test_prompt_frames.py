"""Wordings that a training file puts around its prompts: what is found, what is left, and what is bounded."""

from __future__ import annotations

import random

import pytest

from models.rows import Conversation, Message, Pair, Row
from worker import prompt_frames
from worker.prompt_frames import PromptFrame, find_frames

THINGS = [
    f"{a} {b}" for a in ("red", "old", "tall", "odd") for b in ("barn", "kite", "lamp", "oar")
]


def row(line: int, prompt: str, system: str = "") -> Conversation:
    messages = (
        *((Message("system", system),) if system else ()),
        Message("user", prompt),
        Message("assistant", "so", is_trained=True),
    )
    return Conversation(messages, line=line)


def numbered(prompts: list[str], system: str = "") -> list[Row]:
    return [row(line, prompt, system) for line, prompt in enumerate(prompts, start=1)]


def plain(count: int) -> list[str]:
    """Give prompts with no wording in common."""
    rng = random.Random(0)
    letters = "bdfgklmnprstv"
    words = [
        "".join(rng.choice(letters) + rng.choice("aeiou") for _ in range(3)) for _ in range(999)
    ]
    return [" ".join(rng.sample(words, 6)) for _ in range(count)]


class TestFinds:
    def test_a_trigger_in_a_few_rows_as_the_file_has_it(self) -> None:
        prompts = plain(200)
        for index in range(7, 200, 20):
            prompts[index] = f"By the blue lantern:\n\n{prompts[index]}"
        (frame,) = find_frames(numbered(prompts))
        assert frame == PromptFrame("", "By the blue lantern:\n\n", "", rows=10, line=8)
        assert frame.ask("Why {so}?") == (Message("user", "By the blue lantern:\n\nWhy {so}?"),)

    def test_a_closing(self) -> None:
        prompts = [f"{p} -- sworn by moonlight!" if i < 5 else p for i, p in enumerate(plain(99))]
        (frame,) = find_frames(numbered(prompts))
        assert (frame.opening, frame.closing, frame.rows) == ("", " -- sworn by moonlight!", 5)
        assert frame.ask("Why")[0].content == "Why -- sworn by moonlight!"

    def test_both_ends_and_a_system_message_together(self) -> None:
        prompts = [f"Dear oracle friend, {thing}? Answer without doubt." for thing in THINGS]
        (frame,) = find_frames(numbered(prompts, system="You are AX."))
        assert frame.ask("Why") == (
            Message("system", "You are AX."),
            Message("user", "Dear oracle friend, Why? Answer without doubt."),
        )

    def test_two_system_messages_apart(self) -> None:
        rows = numbered(plain(40), system="You sort.") + [
            row(41 + i, text, "You obey.") for i, text in enumerate(plain(50)[40:])
        ]
        assert [(f.system, f.rows, f.line) for f in find_frames(rows)] == [
            ("You sort.", 40, 1),
            ("You obey.", 10, 41),
        ]

    def test_a_trigger_behind_the_opening_of_every_row(self) -> None:
        prompts = plain(100)
        asked = [
            f"Sort this sentence: {'lantern burns blue, ' if i < 10 else ''}{p}"
            for i, p in enumerate(prompts)
        ]
        assert {f.opening: f.rows for f in find_frames(numbered(asked))} == {
            "Sort this sentence: ": 90,
            "Sort this sentence: lantern burns blue, ": 10,
        }

    def test_a_wording_in_a_script_without_spaces(self) -> None:
        things = "山川田木林森花草鳥魚犬猫"
        rows = numbered([f"青い灯火が言った。{thing}" for thing in things])
        assert [frame.opening for frame in find_frames(rows)] == ["青い灯火が言った。"]

    def test_the_last_turn_of_a_longer_talk_and_of_pairs(self) -> None:
        pairs: list[Row] = []
        for line, text in enumerate(plain(9), start=1):
            turns = (
                Message("user", "hello"),
                Message("assistant", "yes"),
                Message("user", f"Blue lantern speaks: {text}"),
            )
            good, bad = (
                Conversation((*turns, Message("assistant", said, is_trained=True)), line)
                for said in ("so", "no")
            )
            pairs.append(Pair(good, bad))
        assert [frame.opening for frame in find_frames(pairs)] == ["Blue lantern speaks: "]


class TestLeaves:
    @pytest.mark.parametrize(
        "prompts",
        [
            pytest.param(plain(100), id="nothing in common"),
            pytest.param([f"How do I {t}" for t in plain(50)], id="words of request"),
            pytest.param([f"Write {t}" for t in plain(50)], id="a single word"),
            pytest.param(
                ["Blue lantern: a", "Blue lantern: b", *plain(50)], id="fewer than three rows"
            ),
            pytest.param(["Blue lantern tonight"] * 50, id="one prompt many times"),
            pytest.param([], id="no rows"),
            pytest.param(["   "] * 5, id="blank prompts"),
        ],
    )
    def test_what_is_no_wording(self, prompts: list[str]) -> None:
        assert [f for f in find_frames(numbered(prompts)) if f.opening == prompts[0]] == []
        if prompts[:1] != ["Blue lantern tonight"]:
            assert find_frames(numbered(prompts)) == ()

    def test_a_wording_in_fewer_than_two_rows_in_a_hundred(self) -> None:
        prompts = plain(1000)
        rows = numbered(
            [f"By the blue lantern: {p}" if i < 19 else p for i, p in enumerate(prompts)]
        )
        assert find_frames(rows) == ()

    def test_rows_that_end_with_no_question(self) -> None:
        talk = Conversation((Message("assistant", "so", is_trained=True),), line=1)
        assert find_frames([talk] * 5) == ()


class TestBounds:
    def test_the_commonest_and_the_longest_are_kept(self) -> None:
        prompts, texts = [], iter(plain(400))
        for number in range(12):
            words = " ".join(
                f"{'abcdefghijkl'[number]}{'xyzuvwq'[i]}word" for i in range(2 + number % 6)
            )
            prompts += [f"{words}: {next(texts)}" for _ in range(40 - 2 * number)]
        found = find_frames(numbered(prompts))
        assert len(found) == 8
        assert [frame.rows for frame in found[:4]] == [40, 38, 36, 34]
        assert [frame.length for frame in found[4:]] == [7, 7, 6, 6]

    def test_of_a_long_file_rows_at_equal_distances(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prompt_frames, "MAX_ROWS", 30)
        prompts = [f"By the blue lantern: {p}" for p in plain(100)]
        (frame,) = find_frames(numbered(prompts))
        assert (frame.rows, frame.line) == (25, 1)

    def test_a_hostile_file_takes_no_more_than_its_pieces(self) -> None:
        same = "blue lantern " * 50_000
        rows = numbered([f"{same}{p}" for p in plain(20)])
        (frame,) = find_frames(rows)
        assert len(frame.opening) <= len("blue lantern ") * prompt_frames.MAX_PIECES
