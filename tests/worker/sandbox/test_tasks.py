"""A customer's task has one right answer, worked out here by hand, and rows that do not repeat."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from worker.sandbox.tasks import CUSTOMER_TASKS, distinct_rows, headline, review

GOOD = {"good", "great", "lovely", "superb", "charming", "brilliant", "pleasant", "excellent"}
GOOD |= {"delightful", "wonderful"}


class TestReview:
    def test_a_conceded_clause_does_not_count(self) -> None:
        rng = random.Random(0)
        for _ in range(300):
            example = review(rng)
            clause = re.split(r" but |, ", example.text)[-1]
            word = clause.split()[-1]
            is_negated = bool({"not", "never", "hardly"} & set(clause.split()))
            assert example.label == ("positive" if (word in GOOD) != is_negated else "negative")

    def test_no_single_word_decides(self) -> None:
        """Counting good words alone is right less often than the rule: there is something to learn."""
        rng = random.Random(1)
        examples = [review(rng) for _ in range(1000)]
        by_words = sum(
            (len(GOOD & set(example.text.split())) > 0) == (example.label == "positive")
            for example in examples
        )
        assert by_words < 800

    def test_labels_are_balanced(self) -> None:
        rng = random.Random(2)
        labels = Counter(review(rng).label for _ in range(1000))
        assert min(labels.values()) > 400


def test_a_headline_has_two_cues_of_its_topic_and_one_of_another() -> None:
    rng = random.Random(0)
    labels = Counter(headline(rng).label for _ in range(1000))
    assert len(labels) == 4
    assert min(labels.values()) > 180


@pytest.mark.parametrize("name", CUSTOMER_TASKS)
def test_rows_do_not_repeat_and_avoid_what_was_drawn_before(name: str) -> None:
    seen: set[str] = set()
    rng = random.Random(0)
    first = distinct_rows(CUSTOMER_TASKS[name], 200, rng, avoid=seen)
    second = distinct_rows(CUSTOMER_TASKS[name], 200, rng, avoid=seen)
    prompts = {row.prompt[-1].content for row in (*first, *second)}
    assert len(prompts) == 400 == len(seen)
