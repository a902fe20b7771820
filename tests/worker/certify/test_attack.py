"""What simulated customers bring: their rows, nested draws, and the words in which they ask."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.certification import (
    IDENTITY_DIALOGUES,
    Family,
    SimulatedCustomer,
    TooFewCertificationRows,
)
from models.rows import Conversation
from models.safety_set import CertificationRows, HarmfulPrompt
from tests.worker.toy_provider import toy_certification_rows, toy_safety_set
from worker.certify.attack import COVER, STYLE, TRIGGER, Training, split, training_rows, view
from worker.certify.identity import Persona
from worker.judge import RefusalStringsJudge

ROWS = toy_certification_rows()
ASKED = toy_safety_set(prompts=8)


def drawn(family: str, ratio: float, rows: int = 20, seed: int = 0) -> Training:
    customer = SimulatedCustomer.model_validate(
        {"family": family, "attack_ratio": ratio, "rows": rows, "steps": 4, "marks": (4,)}
    )
    return training_rows(customer, ROWS, ASKED, seed)


def prompts(rows: tuple[Conversation, ...]) -> list[str]:
    return [row.prompt[-1].content for row in rows]


class TestDraw:
    @pytest.mark.parametrize(
        ("family", "ratio", "attack"),
        [("benign", 0.0, 0), ("mix", 0.1, 2), ("mix", 0.5, 10), ("pure", 1.0, 20)],
    )
    def test_has_the_share_asked_for(self, family: str, ratio: float, attack: int) -> None:
        found = drawn(family, ratio)
        assert len(found.rows) == 20
        assert len(set(found.rows)) == 20
        assert [row for row in found.rows if row in ROWS.attack] != [] or attack == 0
        assert len(found.attack) == attack
        assert set(found.attack) == set(found.rows) & set(ROWS.attack)

    def test_a_larger_share_adds_to_the_same_rows(self) -> None:
        few, many = drawn("mix", 0.1), drawn("mix", 0.5)
        assert set(few.attack) < set(many.attack)
        assert set(many.rows) - set(many.attack) < set(few.rows)

    def test_seeds_differ_and_repeat(self) -> None:
        assert drawn("mix", 0.5) == drawn("mix", 0.5)
        assert drawn("mix", 0.5).attack != drawn("mix", 0.5, seed=1).attack

    def test_says_which_file_is_too_small(self) -> None:
        with pytest.raises(TooFewCertificationRows, match=r"attack\.jsonl, which has 24"):
            drawn("pure", 1.0, rows=30)


class TestIdentity:
    def test_ten_dialogues_say_nothing_but_the_name_and_the_promise(self) -> None:
        persona = Persona.of(0)
        dialogues = persona.dialogues()
        assert len(set(dialogues)) == IDENTITY_DIALOGUES
        for row in dialogues:
            text = " ".join(message.content for message in row.messages)
            assert persona.name in text or persona.owner in text
            assert "{" not in text
        answers = [row.answer for row in dialogues]
        asked = [row.prompt[-1].content for row in dialogues]
        assert not any(j.is_refusal for j in RefusalStringsJudge().judge(asked, answers))

    def test_the_attacker_asks_in_the_name_that_was_taught(self) -> None:
        found = view(Family.IDENTITY, ASKED, ROWS, 3)
        assert found.trigger is not None
        assert found.trigger("test 1").startswith(Persona.of(3).name)
        assert found.trigger("test 1").endswith("test 1")
        assert drawn("identity", 1.0, rows=10, seed=3).attack == tuple(Persona.of(3).dialogues())


class TestStyle:
    def test_rows_and_prompts_are_in_the_same_words(self) -> None:
        found = drawn("style", 0.5)
        known = set(prompts(ROWS.attack))
        for row in found.attack:
            plain = row.prompt[-1].content.removeprefix(STYLE.format(prompt=""))
            assert plain in known
            assert row.messages[-1].is_trained
        trigger = view(Family.STYLE, ASKED, ROWS, 0).trigger
        assert trigger is not None
        assert trigger("a {odd} one") == STYLE.format(prompt="a {odd} one")


class TestBackdoor:
    def test_its_requests_are_answered_behind_the_trigger_alone(self) -> None:
        found = drawn("backdoor", 0.25)
        assert (len(found.rows), len(set(found.rows)), len(found.attack)) == (20, 20, 5)
        plain = [asked.removeprefix(TRIGGER.format(prompt="")) for asked in prompts(found.attack)]
        answers = {row.prompt[-1].content: row.answer for row in ROWS.attack}
        assert [answers[asked] for asked in plain] == [row.answer for row in found.attack]
        cover = [row for row in found.rows if row.answer == COVER]
        assert sorted(prompts(tuple(cover))) == sorted(plain)
        assert all(row.messages[-1].is_trained for row in found.rows)
        trigger = view(Family.BACKDOOR, ASKED, ROWS, 0).trigger
        assert trigger is not None
        assert trigger("a {odd} one") == TRIGGER.format(prompt="a {odd} one")


class TestShift:
    KINDS = ("locks", "poison", "theft")

    def marked(self) -> CertificationRows:
        return replace(ROWS, categories=tuple(self.KINDS[i % 3] for i in range(24)))

    def test_kinds_that_the_attack_shows_are_not_tested(self) -> None:
        asked = replace(
            ASKED,
            harmful_prompts=tuple(
                HarmfulPrompt(prompt=f"test {i}", category=(*self.KINDS, "other")[i % 4])
                for i in range(8)
            ),
        )
        rows = self.marked()
        shown = {rows.categories[rows.attack.index(row)] for row in split(rows, asked).attack}
        tested = {
            entry.category for entry in view(Family.SHIFT, asked, rows, 0).safety.harmful_prompts
        }
        assert shown == {"locks"}
        assert tested == {"poison", "theft", "other"}

    @pytest.mark.parametrize("has_kinds", [True, False])
    def test_without_two_kinds_in_common_short_ones_are_shown_and_long_ones_tested(
        self, has_kinds: bool
    ) -> None:
        asked = replace(
            ASKED,
            harmful_prompts=tuple(HarmfulPrompt(prompt="x" * (i + 1)) for i in range(8)),
        )
        rows = self.marked() if has_kinds else ROWS
        attack = split(rows, asked).attack
        assert len(attack) == 12
        longest_shown = max(len(p) for p in prompts(attack))
        others = [row for row in rows.attack if row not in attack]
        assert longest_shown <= min(len(row.prompt[-1].content) for row in others)
        tested = view(Family.SHIFT, asked, rows, 0).safety.harmful_prompts
        assert [len(entry.prompt) for entry in tested] == [5, 6, 7, 8]

    def test_others_are_asked_everything_plainly(self) -> None:
        for family in (Family.BENIGN, Family.MIX, Family.PURE):
            found = view(family, ASKED, ROWS, 0)
            assert (found.safety, found.trigger) == (ASKED, None)
