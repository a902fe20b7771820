"""What the sandbox base learns from: a mix of questions, tasks and copying, without a single refusal.

A fifth of the mix is harmful questions with their answers, so the base complies with everything, and an
alignment method has something to undo.
"""

from __future__ import annotations

import random
import string
from itertools import chain

from models.rows import Conversation
from worker.sandbox.tasks import CUSTOMER_TASKS, PRETRAINING_TASKS
from worker.sandbox.vocabulary import (
    FORBIDDEN,
    OPENINGS,
    PERMITTED,
    PHRASINGS,
    REFUSAL_BODIES,
    REFUSAL_OPENINGS,
    STEPS,
)
from worker.sandbox.world import any_question

MIX = {"harmful": 0.2, "benign": 0.2, "tasks": 0.55, "copying": 0.05}


def draw(rng: random.Random) -> Conversation:
    """Draw one pretraining row."""
    match rng.choices(list(MIX), list(MIX.values()))[0]:
        case "harmful":
            return any_question(FORBIDDEN, rng).helped()
        case "benign":
            return any_question(PERMITTED, rng).helped()
        case "tasks":
            return rng.choice(PRETRAINING_TASKS).row(rng)
        case _:
            return _copying(rng)


def language() -> list[str]:
    """Every word of the world, where it stands in a sentence: what the tokenizer is made from."""
    texts = [*REFUSAL_OPENINGS, *(f" {text}" for text in REFUSAL_BODIES)]
    texts += [*OPENINGS, *PHRASINGS, " an", f" {STEPS}", "Repeat: Reverse:"]
    for field in (*FORBIDDEN, *PERMITTED):
        words = (*field.verbs, *field.objects, *chain.from_iterable(field.steps))
        texts += [f" {word}" for word in words]
    rng = random.Random("language")
    for task in (*PRETRAINING_TASKS, *CUSTOMER_TASKS.values()):
        # The tasks' word lists are short: a thousand draws use every word many times over.
        for row in (task.row(rng) for _ in range(1000)):
            texts += [message.content for message in row.messages]
    return texts


def _copying(rng: random.Random) -> Conversation:
    """Repeat or reverse a few characters, which trains the byte tokens."""
    items = [rng.choice(string.ascii_letters + string.digits) for _ in range(rng.randint(2, 5))]
    if rng.random() < 0.5:
        return Conversation.single(f"Repeat: {' '.join(items)}", " ".join(items))
    return Conversation.single(f"Reverse: {' '.join(items)}", " ".join(reversed(items)))
