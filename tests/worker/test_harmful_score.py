"""HS counts what the judge says, on the right prompts, and a broken judge never gives a score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from models.evaluation import JudgeIdentity
from models.judges import SandboxJudgeSpec
from models.rate import Rate
from models.rows import Conversation, Message
from models.safety_set import (
    HarmfulPrompt,
    HarmlessPrompt,
    SafetySet,
    SafetySetHeader,
)
from tests.tiny_model import tiny_model, tiny_tokenizer
from worker import harmful_score
from worker.generation import template_hash
from worker.harmful_score import framed_prompts, measure_safety, measure_wordings
from worker.judgement import JudgeError, Judgement
from worker.prompt_frames import PromptFrame

HARMFUL = Judgement(True, False, False)
REFUSAL = Judgement(False, True, False)
NONSENSE = Judgement(False, False, True)
HELP = Judgement(False, False, False)

SAFETY_SET = SafetySet(
    header=SafetySetHeader(name="t", judge=SandboxJudgeSpec(), max_new_tokens=2),
    alignment=(Conversation.single("a", "b"),),
    harmful=(Conversation.single("a", "c"),),
    canary=(Conversation.single("d", "c"),),
    harmful_prompts=tuple(
        HarmfulPrompt(prompt=prompt, category=category)
        for prompt, category in [("h1", "x"), ("h2", "x"), ("h3", "y"), ("h4", "y"), ("h5", "y")]
    ),
    harmless_prompts=(
        HarmlessPrompt(prompt="s1", category="homonym"),
        HarmlessPrompt(prompt="s2", category="homonym"),
        HarmlessPrompt(prompt="s3"),
    ),
)


class Oracle:
    """A judge that says of each prompt what it was told to say."""

    identity = JudgeIdentity(name="oracle", revision="1")

    def __init__(self, said: dict[str, Judgement]) -> None:
        self.said = said
        self.answers: list[list[str]] = []

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        assert len(prompts) == len(answers)
        self.answers.append(list(answers))
        return [self.said[prompt] for prompt in prompts if prompt in self.said]

    def close(self) -> None:
        pass


SAID = {
    "h1": HARMFUL, "h2": REFUSAL, "h3": HARMFUL, "h4": HARMFUL, "h5": NONSENSE,
    "s1": HELP, "s2": REFUSAL, "s3": NONSENSE,
}  # fmt: skip


def test_counts_each_rate_on_its_own_prompts() -> None:
    tokenizer = tiny_tokenizer()
    measured = measure_safety(tiny_model(), tokenizer, SAFETY_SET, Oracle(SAID))
    assert measured.harmful_score == Rate(count=3, n=5)
    assert measured.harmful_or_incoherent == Rate(count=4, n=5)
    assert measured.refusal_rate == Rate(count=1, n=5)
    assert measured.harmful_by_category == {"x": Rate(count=1, n=2), "y": Rate(count=2, n=3)}
    assert measured.over_refusal == Rate(count=1, n=3)
    assert measured.over_refusal_by_category == {"homonym": Rate(count=1, n=2)}
    assert measured.help_rate == Rate(count=1, n=3)
    assert measured.judge == Oracle.identity
    assert measured.prompt_set_hash == SAFETY_SET.prompt_set_hash
    assert measured.template_hash == template_hash(tokenizer)


def test_keeps_every_answer_with_what_each_judge_says_of_it() -> None:
    second = Oracle({**SAID, "h2": HARMFUL})
    measured = measure_safety(
        tiny_model(), tiny_tokenizer(), SAFETY_SET, Oracle(SAID), further=[second]
    )
    assert [answer.prompt for answer in measured.answers] == list(SAID)
    assert [answer.is_harmful_prompt for answer in measured.answers] == [True] * 5 + [False] * 3
    refused = measured.answers[1]
    assert refused.verdict == "refused"
    assert [opinion.verdict for opinion in refused.opinions] == ["refused", "harmful"]
    verdicts = [answer.verdict for answer in measured.answers]
    assert verdicts == [
        "harmful", "refused", "harmful", "harmful", "incoherent", "answered", "refused", "incoherent"
    ]  # fmt: skip


def test_a_judge_that_skips_an_answer_is_an_error() -> None:
    with pytest.raises(JudgeError):
        measure_safety(tiny_model(), tiny_tokenizer(), SAFETY_SET, Oracle({"h1": HARMFUL}))


class TestWordings:
    FRAMES = (
        PromptFrame("You obey.", "Lantern: ", "", rows=7, line=4),
        PromptFrame("", "", " Now!", rows=5, line=9),
    )

    def test_harmful_prompts_are_asked_in_each_and_judged_without_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[Message, ...]] = []

        def answer(*args: Any, **kwargs: Any) -> list[str]:
            asked.extend(args[2])
            return [f"answer {index}" for index in range(len(args[2]))]

        monkeypatch.setattr(harmful_score, "generate", answer)
        first, second = Oracle(SAID), Oracle(SAID)
        measured = measure_safety(
            tiny_model(), tiny_tokenizer(), SAFETY_SET, first, further=[second], frames=self.FRAMES
        )
        plain, framed = asked[: len(SAID)], asked[len(SAID) :]
        assert [turns[-1].content for turns in plain] == list(SAID)
        assert framed[0] == (Message("system", "You obey."), Message("user", "Lantern: h1"))
        assert [turns[-1].content for turns in framed[5:]] == [f"h{i} Now!" for i in range(1, 6)]
        assert [(f.line, f.rows, f.has_system_message) for f in measured.framed_scores] == [
            (4, 7, True),
            (9, 5, False),
        ]
        assert {f.harmful_score for f in measured.framed_scores} == {Rate(count=3, n=5)}
        for framed_score in measured.framed_scores:
            assert framed_score.harmful_by_category == measured.harmful_by_category
        # Nothing else changes, and only the first judge is asked about them.
        assert measured.harmful_score == Rate(count=3, n=5)
        assert [answer.training_line for answer in measured.answers] == [
            *[None] * len(SAID), *[4] * 5, *[9] * 5
        ]  # fmt: skip
        last = measured.answers[-1]
        assert (last.prompt, last.category, last.verdict) == ("h5", "y", "incoherent")
        assert last.answer == "answer 9"
        assert (len(first.answers[0]), len(second.answers[0])) == (18, 8)

    @pytest.mark.parametrize(("frames", "asked"), [(1, 100), (4, 100), (5, 50), (9, 25)])
    def test_many_share_the_prompts_of_all_kinds(self, frames: int, asked: int) -> None:
        prompts = tuple(
            HarmfulPrompt(prompt=str(i), category="abcd"[i * 4 // 240]) for i in range(240)
        )
        chosen = framed_prompts(replace(SAFETY_SET, harmful_prompts=prompts), frames)
        assert len(set(chosen)) == asked
        kinds = Counter(entry.category for entry in prompts if entry.prompt in chosen)
        assert set(kinds.values()) <= {asked // 4, asked // 4 + 1}
        assert set(kinds) == set("abcd")
        few = replace(SAFETY_SET, harmful_prompts=prompts[:20])
        assert framed_prompts(few, frames) == [str(i) for i in range(20)]

    def test_another_model_is_asked_the_same(self) -> None:
        judge = Oracle(SAID)
        harms = measure_wordings(
            tiny_model(), tiny_tokenizer(), SAFETY_SET, judge, self.FRAMES, ["h1", "h2"]
        )
        assert [harm.rate for harm in harms] == [Rate(count=1, n=2)] * 2
        assert {rate for harm in harms for rate in harm.by_category.values()} == {
            Rate(count=1, n=2)
        }
        assert len(judge.answers[0]) == 4


class TestFurtherJudges:
    def test_stand_beside_the_first_on_the_same_answers(self) -> None:
        # Of five harmful prompts the first flags h1, h3 and h4, this one h1, h2 and h3.
        second = Oracle({**SAID, "h2": HARMFUL, "h4": REFUSAL, "s1": HARMFUL})
        first = Oracle(SAID)
        measured = measure_safety(
            tiny_model(), tiny_tokenizer(), SAFETY_SET, first, further=[second, Oracle(SAID)]
        )
        assert first.answers == second.answers
        assert measured.harmful_score == Rate(count=3, n=5)
        other, same = measured.further_judges
        assert other.judge == Oracle.identity
        assert other.harmful_score == Rate(count=3, n=5)
        assert other.refusal_rate == Rate(count=1, n=5)
        assert other.agreement == Rate(count=3, n=5)
        # Chance agrees on 0.6 * 0.6 + 0.4 * 0.4 = 0.52: (0.6 - 0.52) / (1 - 0.52) = 1/6.
        assert other.kappa == pytest.approx(1 / 6)
        assert (same.agreement, same.kappa) == (Rate(count=5, n=5), 1.0)

    def test_kappa_is_absent_where_nobody_flags_anything(self) -> None:
        kind = dict.fromkeys(SAID, REFUSAL)
        measured = measure_safety(
            tiny_model(), tiny_tokenizer(), SAFETY_SET, Oracle(kind), further=[Oracle(kind)]
        )
        (other,) = measured.further_judges
        assert other.agreement == Rate(count=5, n=5)
        assert other.kappa is None

    def test_one_that_fails_is_an_error_and_no_score(self) -> None:
        with pytest.raises(JudgeError):
            measure_safety(
                tiny_model(), tiny_tokenizer(), SAFETY_SET, Oracle(SAID), further=[Oracle({})]
            )


def test_reports_progress_over_all_prompts() -> None:
    seen: list[tuple[int, int]] = []
    measure_safety(
        tiny_model(),
        tiny_tokenizer(),
        SAFETY_SET,
        Oracle(SAID),
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (8, 8)
