"""FA is an exact match on the last answer, over rows that are the same for every model."""

from __future__ import annotations

import pytest

from models.rate import Rate
from models.rows import Conversation
from tests.tiny_model import tiny_model, tiny_tokenizer
from worker import task_accuracy
from worker.task_accuracy import measure_accuracy, pick_rows


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
