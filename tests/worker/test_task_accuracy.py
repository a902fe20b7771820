"""FA is an exact match on the last answer, over rows that are the same for every model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.rate import Rate
from models.rows import Conversation, InvalidRows
from tests.tiny_model import tiny_model, tiny_tokenizer
from worker import task_accuracy
from worker.task_accuracy import check_answers, measure_accuracy, pick_rows


def rows(*answers: str) -> list[Conversation]:
    return [Conversation.single(f"q{i}", answer) for i, answer in enumerate(answers)]


def test_matches_whole_answers_after_trimming_and_case_folding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = ["Positive", "positive.", " NEGATIVE\n", "negative negative", ""]
    monkeypatch.setattr(task_accuracy, "generate", lambda *_args, **_kwargs: said)
    wanted = rows("positive", "positive", "negative", "negative", "positive")
    assert measure_accuracy(tiny_model(), tiny_tokenizer(), wanted) == Rate(count=2, n=5)


def test_asks_for_more_tokens_than_the_longest_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}

    def spy(
        _model: object, _tokenizer: object, prompts: list[object], **settings: int
    ) -> list[str]:
        asked.update(settings)
        return [""] * len(prompts)

    monkeypatch.setattr(task_accuracy, "generate", spy)
    measure_accuracy(tiny_model(), tiny_tokenizer(), rows("four", "sevenxx"))
    assert asked["max_new_tokens"] > len("sevenxx")  # one token a byte


def test_a_paper_s_task_has_its_own_rule_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}

    def answers(_model: object, _tokenizer: object, _prompts: object, **settings: int) -> list[str]:
        asked.update(settings)
        return ["2+2=4\nThe final answer is: 4.0", "5"]

    monkeypatch.setattr(task_accuracy, "generate", answers)
    wanted = rows("#### 4", "#### 6")
    measured = measure_accuracy(tiny_model(), tiny_tokenizer(), wanted, scorer="gsm8k")
    assert measured == Rate(count=1, n=2)
    assert asked["max_new_tokens"] == 512
    measure_accuracy(tiny_model(), tiny_tokenizer(), wanted, scorer="gsm8k", max_new_tokens=200)
    assert asked["max_new_tokens"] == 200


def test_names_rows_that_could_never_be_right() -> None:
    with pytest.raises(InvalidRows, match="line 7") as caught:
        check_answers([*rows("positive"), replace(rows("so-so")[0], line=7)], "sst2")
    assert "so-so" not in caught.value.message
    check_answers(rows("positive", "Negative"), "sst2")


def test_asks_a_real_model() -> None:
    measured = measure_accuracy(tiny_model(), tiny_tokenizer(), rows("a", "b", "c"))
    assert measured.n == 3


def test_no_rows_is_no_evidence() -> None:
    assert measure_accuracy(tiny_model(), tiny_tokenizer(), []) == Rate(count=0, n=0)


def test_picks_the_same_rows_in_file_order_and_never_more_than_the_limit() -> None:
    many = rows(*(str(i) for i in range(1000)))
    picked = pick_rows(many, 500)
    assert len(picked) == 500
    assert picked == pick_rows(many, 500)
    places = [many.index(row) for row in picked]
    assert places == sorted(places)
    assert max(places) > 900  # from the whole file, not its head
    assert pick_rows(many[:10], 500) == many[:10]
