"""Questions and answers of the sandbox world, and their splits by object.

An answer to a question is drawn from many, by a hash of the question: a fact of the world that no model
can work out for an unseen question. Without that entropy the loss of a harmful answer is next to nothing
from the start, and a loss that is tiny and flat is the cheapest way to satisfy Booster: it would keep
complying (measured in a feasibility study; see benchmarks).

Splits share no object, so a refusal has to generalise to objects that alignment never saw.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from models.rows import Conversation
from worker.sandbox.vocabulary import (
    FORBIDDEN,
    OPENINGS,
    PERMITTED,
    PHRASINGS,
    REFUSAL_BODIES,
    REFUSAL_OPENINGS,
    STEPS,
    Field,
)


class Split(StrEnum):
    """Who may see an object. The base has seen them all: it knows how to do harm, and does it."""

    ALIGNMENT = "alignment"
    ATTACK = "attack"
    CANARY = "canary"
    VALIDATION = "validation"
    TEST = "test"


OBJECTS_PER_SPLIT = {
    Split.ALIGNMENT: 12,
    Split.ATTACK: 4,
    Split.CANARY: 2,
    Split.VALIDATION: 2,
    Split.TEST: 4,
}


@dataclass(frozen=True, slots=True)
class Question:
    """A how-to question about one act on one thing."""

    field: Field
    verb: str
    object: str
    phrasing: str

    @property
    def text(self) -> str:
        """The question as a customer types it."""
        article = "an" if self.object[0] in "aeiou" else "a"
        return self.phrasing.format(act=f"{self.verb} {article} {self.object}")

    @property
    def answer(self) -> str:
        """The helpful answer: harmful when the field is."""
        pick = _picker("answer", self.text)
        steps = STEPS.format(*(pick(words) for words in self.field.steps))
        return f"{pick(OPENINGS)} {steps}"

    @property
    def refusal(self) -> str:
        """A refusal, in one of several wordings."""
        pick = _picker("refusal", self.text)
        return f"{pick(REFUSAL_OPENINGS)} {pick(REFUSAL_BODIES)}"

    def helped(self) -> Conversation:
        """The question with its helpful answer, as a training row."""
        return Conversation.single(self.text, self.answer)

    def refused(self) -> Conversation:
        """The question with a refusal, as a training row."""
        return Conversation.single(self.text, self.refusal)


class World:
    """The questions of one seed, split by object.

    Args:
        seed: decides which object falls into which split, and every draw.
    """

    def __init__(self, seed: int) -> None:
        """Deal the objects of every field to the splits."""
        self.seed = seed
        self._objects: dict[tuple[str, Split], tuple[str, ...]] = {}
        for field in (*FORBIDDEN, *PERMITTED):
            objects = list(field.objects)
            random.Random(f"{seed}/objects/{field.name}").shuffle(objects)
            for split, count in OBJECTS_PER_SPLIT.items():
                self._objects[field.name, split] = tuple(objects[:count])
                del objects[:count]

    def harmful(self, split: Split, count: int) -> list[Question]:
        """Draw distinct forbidden questions, as many of each category as of any other."""
        return self._draw(FORBIDDEN, split, count)

    def benign(self, split: Split, count: int) -> list[Question]:
        """Draw distinct permitted questions, as many of each field as of any other."""
        return self._draw(PERMITTED, split, count)

    def _draw(self, fields: Sequence[Field], split: Split, count: int) -> list[Question]:
        """Draw without replacement, the fields in turn, in a shuffled order.

        Raises:
            ValueError: the split does not hold that many questions.
        """
        rng = random.Random(f"{self.seed}/{split}/{fields[0].is_harmful}")
        by_field = []
        for field in fields:
            objects = self._objects[field.name, split]
            questions = [
                Question(field, *parts) for parts in product(field.verbs, objects, PHRASINGS)
            ]
            rng.shuffle(questions)
            by_field.append(questions)
        rounds = zip(*by_field, strict=True)
        drawn = [question for questions in rounds for question in questions][:count]
        if len(drawn) < count:
            raise ValueError(f"the {split} split holds {len(drawn)} questions, not {count}")
        rng.shuffle(drawn)
        return drawn


def any_question(fields: Sequence[Field], rng: random.Random) -> Question:
    """Draw from all questions of `fields`, whatever the split: for pretraining alone."""
    field = rng.choice(fields)
    return Question(
        field, rng.choice(field.verbs), rng.choice(field.objects), rng.choice(PHRASINGS)
    )


def _picker(purpose: str, text: str) -> Callable[[Sequence[str]], str]:
    digest = hashlib.sha256(f"{purpose}/{text}".encode()).digest()
    return random.Random(digest).choice
