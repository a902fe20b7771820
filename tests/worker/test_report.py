"""A report warns of what makes its numbers mean less, and judges take turns in memory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from models.disjointness import Overlap
from models.evaluation import EvaluationReport, EvaluationWarning
from models.judges import RefusalStringsSpec
from models.safety_set import HarmfulPrompt, SafetySet
from tests.tiny_model import tiny_model, tiny_tokenizer
from tests.worker.toy_provider import toy_safety_set
from worker import report as report_module
from worker.base_models import FALLBACK_TEMPLATE, LoadedBase
from worker.judgement import JudgeError, Judgement
from worker.judges.refusal_strings import RefusalStringsJudge
from worker.prompt_frames import PromptFrame
from worker.report import JudgeInTurn, make_report, overlap_warning

TWO_CATEGORIES = replace(
    toy_safety_set(prompts=4),
    harmful_prompts=(
        HarmfulPrompt(prompt="test 1", category="a"),
        HarmfulPrompt(prompt="test 2", category="b"),
    ),
)


class TestWarnings:
    def report(self, safety: SafetySet = TWO_CATEGORIES, **options: object) -> EvaluationReport:
        base = LoadedBase("tiny", tiny_model(), tiny_tokenizer())
        if options.pop("bare", False):
            base.tokenizer.chat_template = FALLBACK_TEMPLATE
        return make_report(base, base.model, safety, max_length=64, **options)  # type: ignore[arg-type]

    def codes(self, report: EvaluationReport) -> list[str]:
        return [warning.code for warning in report.warnings]

    def test_there_may_be_none(self) -> None:
        assert self.report().warnings == ()

    def test_one_category(self) -> None:
        assert self.codes(self.report(toy_safety_set(prompts=4))) == ["single_category"]

    def test_no_chat_template(self) -> None:
        assert self.codes(self.report(bare=True)) == ["fallback_chat_template"]

    def test_a_wording_that_leaves_no_room_for_a_prompt(self) -> None:
        long, short = (
            # Alike in all that a score says of its wording.
            PromptFrame("obey " * words, "", "", rows=9, line=2_000)
            for words in (2_000, 3)
        )
        asked: list[PromptFrame] = []
        report = self.report(frames=(long, short), on_frames=asked.extend)
        assert asked == [short]
        assert len(report.framed_scores) == 1
        assert report.unasked_wordings == 1
        (warning,) = report.warnings
        assert warning.code == "wording_not_asked"
        assert "Line 2,000 of the training file" in warning.message
        assert "obey" not in warning.message

    def test_more_wordings_than_are_asked_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(report_module, "MAX_WORDINGS", 2)
        frames = [PromptFrame("", f"Lamp {n}: ", "", rows=9, line=n) for n in (1, 2, 3)]
        report = self.report(frames=frames)
        assert [framed.line for framed in report.framed_scores] == [1, 2]
        assert report.unasked_wordings == 1
        (warning,) = report.warnings
        assert warning.code == "wording_not_asked"
        assert "has 3 wordings" in warning.message

    @pytest.mark.parametrize(("refused", "is_warned"), [(2, False), (4, True)])
    def test_a_model_that_surely_refuses_most_harmless_prompts(
        self, monkeypatch: pytest.MonkeyPatch, refused: int, is_warned: bool
    ) -> None:
        def judge(_: object, prompts: list[str], __: object) -> list[Judgement]:
            return [Judgement(False, prompt in kind[:refused], False) for prompt in prompts]

        kind = [f"kind {number}" for number in range(4)]
        monkeypatch.setattr(RefusalStringsJudge, "judge", judge)
        report = self.report()
        assert report.over_refusal is not None
        assert report.over_refusal.count == refused
        assert self.codes(report) == (["refuses_harmless_prompts"] if is_warned else [])

    def test_those_known_before_come_first(self) -> None:
        known = EvaluationWarning(code="known", message="Known.")
        report = self.report(toy_safety_set(prompts=4), warnings=[known])
        assert self.codes(report) == ["known", "single_category"]


class TestOverlapWarning:
    def test_names_some_lines_and_all_counts(self) -> None:
        warning = overlap_warning(Overlap(exact=(30, 2), near=tuple(range(100, 120))))
        assert warning is not None
        assert "22 rows" in warning.message
        assert "2 of them in the same words" in warning.message
        assert "(lines 2, 30, 100, 101, 102, 103, 104, 105, 106, 107, …)" in warning.message

    def test_one_row_reads_well(self) -> None:
        warning = overlap_warning(Overlap(exact=(), near=(3,)))
        assert warning is not None
        assert warning.message.startswith("1 row of the training file asks what a test prompt asks")

    def test_no_rows_are_no_warning(self) -> None:
        assert overlap_warning(Overlap((), ())) is None


class TestJudgeInTurn:
    def test_has_a_name_once_it_was_asked(self) -> None:
        judge = JudgeInTurn(RefusalStringsSpec())
        with pytest.raises(RuntimeError):
            _ = judge.identity
        judge.judge(["p"], ["I cannot."])
        assert judge.identity == RefusalStringsJudge().identity

    @pytest.mark.parametrize("fails", [False, True])
    def test_gives_its_memory_back_even_when_it_fails(
        self, monkeypatch: pytest.MonkeyPatch, fails: bool
    ) -> None:
        told: list[str] = []

        def judge(_: object, prompts: list[str], __: object) -> list[Judgement]:
            told.append("judged")
            if fails:
                raise JudgeError("down")
            return [Judgement(False, True, False)] * len(prompts)

        monkeypatch.setattr(RefusalStringsJudge, "judge", judge)
        monkeypatch.setattr(RefusalStringsJudge, "close", lambda _: told.append("closed"))
        with pytest.raises(JudgeError) if fails else nullcontext():
            JudgeInTurn(RefusalStringsSpec()).judge(["p"], ["a"])
        assert told == ["judged", "closed"]
