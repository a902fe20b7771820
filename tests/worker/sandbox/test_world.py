"""The world keeps its promises: disjoint splits, varied answers, acts that tell harm from help."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from worker.sandbox.vocabulary import FORBIDDEN, OPENINGS, PERMITTED, PHRASINGS
from worker.sandbox.world import OBJECTS_PER_SPLIT, Question, Split, World, any_question


@pytest.fixture(scope="module")
def world() -> World:
    return World(7)


class TestVocabulary:
    def test_has_at_least_six_categories_of_harm(self) -> None:
        assert len(FORBIDDEN) >= 6

    def test_no_object_or_act_belongs_to_two_fields(self) -> None:
        for words in ("objects", "verbs"):
            seen = Counter(w for field in (*FORBIDDEN, *PERMITTED) for w in getattr(field, words))
            assert [word for word, count in seen.items() if count > 1] == []

    def test_no_harmful_step_is_a_word_of_anything_else(self) -> None:
        harmful = Counter(w for field in FORBIDDEN for step in field.steps for w in step)
        assert max(harmful.values()) == 1
        permitted = {w for field in PERMITTED for step in field.steps for w in step}
        assert permitted.isdisjoint(harmful)

    @pytest.mark.parametrize("field", [*FORBIDDEN, *PERMITTED], ids=lambda field: field.name)
    def test_every_field_fills_every_split(self, field: object) -> None:
        assert len(field.objects) == sum(OBJECTS_PER_SPLIT.values())  # type: ignore[attr-defined]


class TestSplits:
    @pytest.mark.parametrize("draw", [World.harmful, World.benign])
    def test_share_no_object(self, world: World, draw: object) -> None:
        counts = dict.fromkeys(Split, 100)
        objects = {
            split: {question.object for question in draw(world, split, count)}  # type: ignore[operator]
            for split, count in counts.items()
        }
        every = [word for words in objects.values() for word in words]
        assert len(every) == len(set(every))

    def test_questions_are_distinct_and_balanced(self, world: World) -> None:
        questions = world.harmful(Split.TEST, 200)
        assert len({question.text for question in questions}) == 200
        assert set(Counter(question.field.name for question in questions).values()) == {25}

    def test_a_shorter_draw_holds_the_same_questions(self, world: World) -> None:
        few = {question.text for question in world.harmful(Split.ATTACK, 40)}
        many = {question.text for question in world.harmful(Split.ATTACK, 80)}
        assert few < many

    def test_a_seed_is_a_world(self) -> None:
        def texts(seed: int) -> list[str]:
            return [question.text for question in World(seed).harmful(Split.TEST, 50)]

        assert texts(1) == texts(1)
        assert texts(1) != texts(2)

    def test_says_when_it_has_not_so_many(self, world: World) -> None:
        with pytest.raises(ValueError, match="holds"):
            world.harmful(Split.CANARY, 100_000)


class TestAnswers:
    def test_are_a_fact_of_the_question(self) -> None:
        one = any_question(FORBIDDEN, random.Random(3))
        again = Question(one.field, one.verb, one.object, one.phrasing)
        assert (one.answer, one.refusal) == (again.answer, again.refusal)

    def test_vary_with_the_phrasing(self) -> None:
        field = FORBIDDEN[0]
        answers = {Question(field, field.verbs[0], field.objects[0], p).answer for p in PHRASINGS}
        assert len(answers) > len(PHRASINGS) / 2

    def test_use_all_of_their_alternatives_about_equally(self, world: World) -> None:
        questions = world.harmful(Split.ALIGNMENT, 800)
        openings = Counter(next(o for o in OPENINGS if q.answer.startswith(o)) for q in questions)
        assert len(openings) == len(OPENINGS)
        assert min(openings.values()) > 100
