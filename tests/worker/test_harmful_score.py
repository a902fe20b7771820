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
    harmless_prompts=tuple(HarmlessPrompt(prompt=prompt) for prompt in ("s1", "s2", "s3")),
)


class Oracle:
    """A judge that says of each prompt what it was told to say."""

    identity = JudgeIdentity(name="oracle", revision="1")

    def __init__(self, said: dict[str, Judgement]) -> None:
        self.said = said

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        assert len(prompts) == len(answers)
        return [self.said[prompt] for prompt in prompts if prompt in self.said]


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
    assert measured.help_rate == Rate(count=1, n=3)
    assert measured.judge == Oracle.identity
    assert measured.prompt_set_hash == SAFETY_SET.prompt_set_hash
    assert measured.template_hash == template_hash(tokenizer)


def test_a_judge_that_skips_an_answer_is_an_error() -> None:
    with pytest.raises(JudgeError):
        measure_safety(tiny_model(), tiny_tokenizer(), SAFETY_SET, Oracle({"h1": HARMFUL}))


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
