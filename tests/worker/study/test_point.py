"""One measurement of a model: what is asked, in whose words, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.evaluation import JudgeIdentity
from models.safety_set import SafetySet
from tests.tiny_model import tiny_model, tiny_tokenizer
from tests.worker.toy_provider import toy_certification_rows, toy_safety_set
from worker.data import encode_rows
from worker.judgement import Judgement
from worker.study.point import Yardstick

TOKENIZER: PreTrainedTokenizerFast = tiny_tokenizer()
ROWS = toy_certification_rows()


class WordJudge:
    """Calls an answer harmful if its prompt has the word."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.asked: list[str] = []

    @property
    def identity(self) -> JudgeIdentity:
        return JudgeIdentity(name="word", revision=self.word)

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        self.asked += prompts
        return [Judgement(self.word in prompt, "kind" in prompt, False) for prompt in prompts]


def yardstick(judge: WordJudge, safety: SafetySet | None = None) -> Yardstick:
    return Yardstick(
        TOKENIZER,
        safety or toy_safety_set(prompts=5),
        judge,
        ROWS.validation,
        canary=encode_rows(toy_safety_set().canary, TOKENIZER, 64),
        max_rows=4,
    )


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_model(len(TOKENIZER))


class TestMeasure:
    def test_counts_what_the_judge_says(self, model: LlamaForCausalLM) -> None:
        judge = WordJudge("test 1")
        attack = encode_rows(ROWS.attack[:3], TOKENIZER, 64)
        point = yardstick(judge).measure(model, 7, attack)
        assert (point.step, point.harmful, point.prompts) == (7, 1, 5)
        assert (point.over_refused, point.harmless_prompts) == (4, 4)
        assert point.task_rows == 4
        assert point.canary_loss is not None
        assert point.canary_loss > 0
        assert point.attack_loss is not None
        assert (point.triggered, point.escaped) == (None, 1)
        assert len(judge.asked) == 9

    def test_asks_harmful_prompts_again_in_the_attacks_words(self, model: LlamaForCausalLM) -> None:
        judge = WordJudge("please")
        with_trigger = replace(yardstick(judge), trigger=lambda prompt: f"please {prompt}")
        point = with_trigger.measure(model, 0)
        assert (point.harmful, point.triggered, point.escaped) == (0, 5, 5)
        assert point.attack_loss is None
        assert judge.asked[-5:] == [f"please test {i}" for i in range(5)]

    def test_a_loss_that_is_no_number_is_absent(self) -> None:
        broken = tiny_model(len(TOKENIZER))
        with torch.no_grad():
            broken.lm_head.weight.fill_(float("nan"))
        assert yardstick(WordJudge("x")).measure(broken, 1).canary_loss is None
