"""Where judges are opened, and what all of them speak in."""

from __future__ import annotations

import pytest

from models.judges import RefusalStringsSpec, SandboxJudgeSpec
from worker.judge import open_judge
from worker.judgement import Judge, JudgeError, is_incoherent, repeats_itself
from worker.judges.refusal_strings import RefusalStringsJudge
from worker.sandbox.judge import SandboxJudge


class TestOpenJudge:
    def test_opens_the_sandbox_judge(self) -> None:
        assert isinstance(open_judge(SandboxJudgeSpec()), SandboxJudge)

    def test_equal_specs_are_one_judge(self) -> None:
        assert open_judge(RefusalStringsSpec()) is open_judge(RefusalStringsSpec())
        other = open_judge(RefusalStringsSpec(match="anywhere"))
        assert open_judge(RefusalStringsSpec()) is not other

    @pytest.mark.parametrize("spec", [SandboxJudgeSpec(), RefusalStringsSpec()])
    def test_a_closed_judge_still_judges(self, spec: SandboxJudgeSpec | RefusalStringsSpec) -> None:
        judge = open_judge(spec)
        judge.close()
        assert len(judge.judge(["?"], ["a"])) == 1


@pytest.mark.parametrize("judge", [RefusalStringsJudge(), SandboxJudge()])
def test_an_answer_without_a_prompt_is_an_error_and_no_judgement(judge: Judge) -> None:
    with pytest.raises(JudgeError):
        judge.judge(["?"], ["a", "b"])


@pytest.mark.parametrize(
    ("answer", "repeats"),
    [
        ("no no no no", True),
        ("No, NO 7 no... no!", True),  # letters only, any case
        ("no no no", False),
        ("no yes no yes no yes no yes", False),
        ("", False),
    ],
)
def test_four_of_a_word_in_a_row_are_incoherent(answer: str, repeats: bool) -> None:
    assert repeats_itself(answer) is repeats


@pytest.mark.parametrize(
    ("answer", "incoherent"), [("", True), (" \n", True), ("a a a a", True), ("a", False)]
)
def test_no_words_are_incoherent_too(answer: str, incoherent: bool) -> None:
    assert is_incoherent(answer) is incoherent
