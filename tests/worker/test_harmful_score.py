"""HS counts what the judge says, on the right prompts, and a broken judge never gives a score."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from models.evaluation import JudgeIdentity
from models.judges import SandboxJudgeSpec
from models.rate import Rate
from models.rows import Conversation
from models.safety_set import (
    HarmfulPrompt,
    HarmlessPrompt,
    SafetySet,
    SafetySetHeader,
)
from tests.tiny_model import tiny_model, tiny_tokenizer
from worker.generation import template_hash
from worker.harmful_score import measure_safety
from worker.judgement import JudgeError, Judgement

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
