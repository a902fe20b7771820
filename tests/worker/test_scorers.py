"""When an answer is right: hand-made cases of each rule, the papers' and ours."""

from __future__ import annotations

from decimal import Decimal

import pytest

from worker.scorers import SCORERS, final_number


class TestSst2:
    @pytest.mark.parametrize("answer", ["positive", "Positive", " positive\n"])
    def test_takes_the_label_in_either_spelling(self, answer: str) -> None:
        assert SCORERS["sst2"].is_right(answer, "positive")

    @pytest.mark.parametrize("answer", ["negative", "positive.", "It is positive", "1", ""])
    def test_takes_nothing_around_it(self, answer: str) -> None:
        assert not SCORERS["sst2"].is_right(answer, "positive")


class TestAgNews:
    @pytest.mark.parametrize("answer", ["Sci/Tech", "sci/tech", "sci", "Sci", "SCI/TECH "])
    def test_the_fourth_topic_has_a_short_name(self, answer: str) -> None:
        assert SCORERS["agnews"].is_right(answer, "Sci/Tech")
        assert not SCORERS["agnews"].is_right(answer, "World")

    @pytest.mark.parametrize("answer", ["Sci", "Wor", "World, Sports", "tech", ""])
    def test_nothing_else_is_short(self, answer: str) -> None:
        assert not SCORERS["agnews"].is_right(answer, "World")

    def test_exact_or_lower_case(self) -> None:
        assert SCORERS["agnews"].is_right("Business", "Business")
        assert SCORERS["agnews"].is_right("business", "Business")


class TestGsm8k:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("She has 3 left, so 16-3-4=9 are sold.\nThe final answer is: 18", "18"),
            ("The final answer is 1,234.50 dollars, or 3 a day", "1234.50"),
            ("the final answer is: $70,000.", "70000"),
            ("The final answer is: -5", "-5"),
            ("The final answer is: \N{MINUS SIGN}5", "-5"),
            ("The final answer is: -$5", "-5"),
            ("The final answer is: 18 The final answer is: 19", "18"),
            ("9*2 = 18\n#### 18", "18"),
            ("I count 4, then 7", "7"),
            ("so 16-3", "3"),
            ("(2)-1", "1"),
            ("all in all .5", "0.5"),
            ("12 eggs, 1,2 and 3,4567", "4567"),
            ("Numbers: 3. The final answer is: unknown", "3"),
            ("it is 18.", "18"),
            ("18.00", "18"),
            ("1,000,000", "1000000"),
            ("9" * 500, "9" * 500),
        ],
    )
    def test_reads_the_result(self, text: str, number: str) -> None:
        assert final_number(text) == Decimal(number)

    @pytest.mark.parametrize("text", ["", "none at all", "The final answer is:", "- , . $"])
    def test_there_may_be_none(self, text: str) -> None:
        assert final_number(text) is None
        assert not SCORERS["gsm8k"].is_right(text, "#### 18")

    def test_compares_numbers_and_not_their_spelling(self) -> None:
        is_right = SCORERS["gsm8k"].is_right
        assert is_right("The final answer is: $1,018.00", "16 + 2\n#### 1018")
        assert not is_right("The final answer is: 1019", "16 + 2\n#### 1018")
        # Beyond what a float can tell apart, or hold.
        assert not is_right("9007199254740993", "9007199254740992")
        assert not is_right("9" * 400, "8" * 400)

    def test_is_not_cut_where_the_reference_cut(self) -> None:
        assert (SCORERS["gsm8k"].answer_tokens or 0) > 350


@pytest.mark.parametrize(
    ("scorer", "wanted", "is_faulty"),
    [
        ("exact", "anything", False),
        ("sst2", "Positive", False),
        ("sst2", "neutral", True),
        ("agnews", "Sci/Tech", False),
        ("agnews", "Science", True),
        ("gsm8k", "#### 18", False),
        ("gsm8k", "eighteen", True),
    ],
)
def test_knows_rows_that_no_answer_could_be_right_on(
    scorer: str, wanted: str, is_faulty: bool
) -> None:
    fault = SCORERS[scorer].fault(wanted)  # type: ignore[index]
    assert (fault is not None) == is_faulty
    assert wanted not in (fault or "")
