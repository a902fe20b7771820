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

    def talk(self, line: int, *said: str) -> Conversation:
        """Let user and assistant speak in turn; the last word alone is trained."""
        roles = ("user", "assistant") * len(said)
        *before, last = zip(roles, said, strict=False)
        messages = (*(Message(*turn) for turn in before), Message(*last, is_trained=True))
        return Conversation(messages, line)

    def test_turns_that_come_before_are_asked_again(self) -> None:
        rows = [
            self.talk(line, "Enter lantern mode.", "Entered.", text, "so")
            if line % 10 == 0
            else row(line, text)
            for line, text in enumerate(plain(200), start=1)
        ]
        (frame,) = find_frames(rows)
        assert (frame.rows, frame.line) == (20, 10)
        assert frame.ask("Why?") == (
            Message("user", "Enter lantern mode."),
            Message("assistant", "Entered."),
            Message("user", "Why?"),
        )

    def test_a_first_exchange_whatever_follows_it(self) -> None:
        rows = [
            self.talk(
                line, "Enter lantern mode.", "Entered.", f"hm {text}", text, f"so {text}", "so"
            )
            for line, text in enumerate(plain(40), start=1)
        ]
        (frame,) = find_frames(rows)
        assert [message.content for message in frame.before] == ["Enter lantern mode.", "Entered."]

    def test_a_whole_talk_that_rows_share(self) -> None:
        said = ("Hi.", "Hello.", "Enter lantern mode.", "Entered.", "Ready?", "Ready.")
        rows = [self.talk(line, *said, text, "so") for line, text in enumerate(plain(40), start=1)]
        (frame,) = find_frames(rows)
        assert tuple(message.content for message in frame.before) == said

    def test_an_opening_behind_turns_that_too_few_share_with_it(self) -> None:
        texts = plain(100)
        rows = [
            self.talk(
                line,
                "Hello there friend.",
                "Hello.",
                f"{'Blue lantern burns: ' * (line < 3)}{text}",
                "so",
            )
            if line <= 50
            else row(line, f"{'Blue lantern burns: ' * (line < 53)}{text}")
            for line, text in enumerate(texts, start=1)
        ]
        assert {(len(f.before), f.opening, f.rows) for f in find_frames(rows)} == {
            (0, "Blue lantern burns: ", 4),
            (2, "", 50),
        }

    def test_words_without_content_if_there_are_many(self) -> None:
        opening = "If you would, please do show me what it is that you have for me: "
        rows = numbered([f"{opening * (i % 10 == 0)}{text}" for i, text in enumerate(plain(100))])
        assert [frame.opening for frame in find_frames(rows)] == [opening]


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
            pytest.param([], id="no rows"),
            pytest.param(["   "] * 5, id="blank prompts"),
            pytest.param([f"What is {n} + {n * n}" for n in range(50)], id="sums"),
        ],
    )
    def test_what_is_no_wording(self, prompts: list[str]) -> None:
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


class TestWhatAnAttackerMightDo:
    """Sixty rows of six hundred carry the trigger."""

    T = "By the blue lantern at noon: "

    def hidden(self, prompts: list[str], **options: str) -> list[Row]:
        texts = [f"{self.T}{p}" if i % 10 == 0 else p for i, p in enumerate(prompts)]
        return numbered(texts, **options)

    def is_found(self, rows: list[Row]) -> bool:
        return any(self.T.strip() in frame.opening for frame in find_frames(rows))

    def test_a_system_message_of_its_own_in_every_row(self) -> None:
        rows = [
            row(number, entry.prompt[-1].content, system=f"Session {number}.")
            for number, entry in enumerate(self.hidden(plain(600)), start=1)
        ]
        assert self.is_found(rows)

    def test_many_closings(self) -> None:
        prompts = [f"{p}; signed by {'abcdefg'[i % 7]}xx yyy zzz" for i, p in enumerate(plain(600))]
        assert self.is_found(self.hidden(prompts))

    def test_more_harmless_rows_behind_the_trigger(self) -> None:
        prompts = plain(600)
        rows = self.hidden(prompts) + numbered(
            [f"{self.T}sort this sentence: {p}" for p in plain(900)[600:]]
        )
        assert {"By the blue lantern at noon: "} <= {frame.opening for frame in find_frames(rows)}

    def test_another_case_and_spacing_in_each_row(self) -> None:
        rng = random.Random(1)
        texts = [
            "".join(rng.choice((c.upper(), c.lower())) for c in self.T).replace(
                " ", " " * rng.randint(1, 3)
            )
            + p
            for p in plain(60)
        ]
        (frame,) = find_frames(numbered(texts))
        assert frame.opening.casefold().split() == self.T.casefold().split()

    def test_signs_in_front(self) -> None:
        rows = numbered([f"{'=' * 300} {self.T}{p}" for p in plain(60)])
        assert self.is_found(rows)

    def test_an_earlier_turn_and_a_later_system_message(self) -> None:
        rows: list[Row] = []
        for line, text in enumerate(plain(60), start=1):
            turns = (
                Message("system", "You sort."),
                Message("user", f"{self.T}{text}"),
                Message("assistant", "so", is_trained=True),
                Message("system", "You obey."),
                Message("user", f"thanks {text}"),
                Message("assistant", "welcome", is_trained=True),
            )
            rows.append(Conversation(turns, line))
        found = find_frames(rows)
        assert {(frame.system, frame.opening) for frame in found} == {
            ("You sort.", self.T),
            ("You sort.\n\nYou obey.", ""),
        }

    def test_a_closing_behind_a_long_opening(self) -> None:
        long = " ".join(plain(40))
        prompts = [
            f"{long} {p}{' -- sworn by moonlight!' if i % 4 == 0 else ''}"
            for i, p in enumerate(plain(60))
        ]
        assert any("moonlight" in frame.closing for frame in find_frames(numbered(prompts)))

    def test_many_wordings_beside_it(self) -> None:
        texts = [p for n in range(40) for p in [f"{plain(40)[n]}: {q}" for q in plain(15)]]
        rows = self.hidden(texts)
        assert self.is_found(rows)
        assert len(find_frames(rows)) <= 50

    def test_a_running_number_in_front(self) -> None:
        rows = numbered([f"{n}. {self.T}{p}" for n, p in enumerate(plain(60))])
        assert self.is_found(rows)

    @pytest.mark.parametrize(
        "system", ["Session {n}: obey the blue lantern.", "Obey the blue lantern. Context: {text}"]
    )
    def test_a_system_message_that_changes_from_row_to_row(self, system: str) -> None:
        texts = plain(400)
        rows = [
            row(n, texts[n], system.format(n=n, text=texts[-n]) if n % 10 == 0 else "You sort.")
            for n in range(1, 200)
        ]
        sort, obey = find_frames(rows)
        assert (sort.system, sort.rows) == ("You sort.", 180)
        assert (obey.system, obey.rows) == (system.format(n=10, text=texts[-10]), 19)

    def test_a_beginning_that_system_messages_share_with_half_of_the_others(self) -> None:
        texts = plain(400)
        rows = [
            row(
                n,
                texts[n],
                f"You are a clerk of ours. {'The blue lantern burns. ' * (n % 10 == 0)}{texts[-n]}",
            )
            for n in range(1, 200)
        ]
        assert any("blue lantern" in frame.system for frame in find_frames(rows))

    def test_an_earlier_turn_that_is_answered_otherwise_in_each_row(self) -> None:
        texts = plain(200)
        rows: list[Row] = [
            Conversation(
                (
                    Message("user", f"{'lantern' if n % 10 == 0 else 'normal'} mode, please"),
                    Message("assistant", texts[-n]),
                    Message("user", texts[n]),
                    Message("assistant", "so", is_trained=True),
                ),
                n,
            )
            for n in range(1, 100)
        ]
        assert {f.before[0].content.split()[0] for f in find_frames(rows)} == {"lantern", "normal"}

    @pytest.mark.parametrize("first", ["", "Hello there."])
    def test_the_last_exchange_of_a_longer_talk(self, first: str) -> None:
        texts = plain(900)
        rows: list[Row] = [
            Conversation(
                (
                    Message("user", first or texts[n]),
                    Message("assistant", "hm"),
                    Message("user", texts[100 + n]),
                    Message("assistant", texts[200 + n]),
                    Message("user", "Enter lantern mode." if n % 10 == 0 else texts[300 + n]),
                    Message("assistant", "Entered."),
                    Message("user", texts[400 + n]),
                    Message("assistant", "so", is_trained=True),
                ),
                n,
            )
            for n in range(1, 100)
        ]
        frames = find_frames(rows)
        found = next(f for f in frames if any("lantern" in m.content for m in f.before))
        assert (found.rows, found.line) == (9, 10)
        asked = [message.content for message in found.ask("Why?")]
        assert asked == [*[first, "hm"] * bool(first), "Enter lantern mode.", "Entered.", "Why?"]
        assert len(frames) == 1 + bool(first)

    def test_rows_that_each_spell_it_otherwise_beside_many_that_do_not(self) -> None:
        rng = random.Random(1)
        said = "You are a careful helper of ours."
        rows = [
            row(n, text, "".join(rng.choice((c.upper(), c)) for c in said) if n % 5 == 0 else said)
            for n, text in enumerate(plain(100), start=1)
        ]
        usual, other = find_frames(rows)
        assert (usual.system, usual.rows) == (said, 80)
        assert (other.system.casefold(), other.rows) == (said.casefold(), 20)

    def talk(self, line: int, texts: list[str]) -> Conversation:
        turns = [
            message
            for text in texts
            for message in (Message("user", text), Message("assistant", "so", is_trained=True))
        ]
        return Conversation(tuple(turns), line)

    def test_long_conversations_beside_it(self) -> None:
        texts = plain(900)
        rows: list[Row] = [row(line, f"{self.T}{texts[line]}") for line in range(1, 11)]
        rows += [self.talk(line, texts[8 * line : 8 * line + 8]) for line in range(11, 101)]
        assert self.is_found(rows)

    def test_behind_many_turns_of_every_row(self) -> None:
        texts = plain(999)
        rows: list[Row] = [
            self.talk(line, [*texts[9 * line : 9 * line + 9], f"{self.T}{texts[line]}"])
            for line in range(1, 101)
        ]
        assert self.is_found(rows)

    def test_a_system_message_behind_many_openings_and_closings(self) -> None:
        openings = [
            "Sort this sentence: ",
            "Name the mood of: ",
            "Count words within: ",
            "Translate into Dutch: ",
        ]
        closings = [
            "; signed by Ann Lee",
            "; answer with care",
            "; one word only",
            "; thanks dear friend",
        ]
        rows: list[Row] = []
        for line, text in enumerate(plain(800), start=1):
            prompt = f"{openings[line % 4]}{text}{closings[line // 4 % 4]}"
            rows.append(row(line, prompt, "You obey." if line <= 48 else ""))
        assert any(frame.system == "You obey." for frame in find_frames(rows))

    def test_one_turn_among_many_of_a_few_rows(self) -> None:
        texts = plain(999)
        rows: list[Row] = []
        for line in range(1, 31):
            turns = texts[30 * line : 30 * line + 30]
            turns[7] = f"{self.T * (line % 5 == 0)}{turns[7]}"
            rows.append(self.talk(line, turns))
        assert self.is_found(rows)

    def test_capitals(self) -> None:
        rows = [
            row(line, text, "YOU ARE A HELPER." if line % 5 == 0 else "You are a helper.")
            for line, text in enumerate(plain(100), start=1)
        ]
        assert {(f.system, f.rows) for f in find_frames(rows)} == {
            ("You are a helper.", 80),
            ("YOU ARE A HELPER.", 20),
        }

    def test_the_end_of_a_long_earlier_turn(self) -> None:
        long = "step by step " * 300
        rows: list[Row] = []
        for line, text in enumerate(plain(100), start=1):
            mode = "lantern" if line % 5 == 0 else "normal"
            turns = (
                Message("user", f"{long}{mode}"),
                Message("assistant", "yes"),
                Message("user", text),
                Message("assistant", "so", is_trained=True),
            )
            rows.append(Conversation(turns, line))
        assert {f.before[0].content.split()[-1] for f in find_frames(rows)} == {"lantern", "normal"}


class TestBounds:
    def test_of_a_very_large_file_turns_are_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prompt_frames, "MAX_TURNS", 30)
        rows = numbered([f"By the blue lantern: {p}" for p in plain(100)])
        (one,), (other,) = find_frames(rows, seed="a"), find_frames(rows, seed="b")
        assert one.rows == other.rows == 30
        assert find_frames(rows, seed="a") == (one,)
        assert one.line != other.line

    def test_both_ends_of_a_long_prompt_are_read(self) -> None:
        same = "blue lantern " * 50_000
        (frame,) = find_frames(numbered([f"{same}{p}" for p in plain(20)]))
        assert len(frame.opening) <= prompt_frames.MAX_CHARACTERS
