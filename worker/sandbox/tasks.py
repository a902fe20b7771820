"""What customers of the sandbox world tune for: reviews and headlines.

The base has met both tasks in pretraining, under other prompts. That is on purpose: where a customer's
task is new to a base this small, its harmful behaviour comes back long before the task is learnt,
whatever the defence, and nothing can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.rows import Conversation

_THINGS = [
    "film",
    "plot",
    "acting",
    "ending",
    "music",
    "script",
    "hotel",
    "room",
    "staff",
    "view",
    "food",
    "menu",
    "service",
    "waiter",
    "phone",
    "screen",
    "battery",
    "camera",
    "book",
    "story",
    "writing",
    "cover",
]
_GOOD = [
    "good",
    "great",
    "lovely",
    "superb",
    "charming",
    "brilliant",
    "pleasant",
    "excellent",
    "delightful",
    "wonderful",
]
_BAD = [
    "bad",
    "awful",
    "dull",
    "terrible",
    "boring",
    "dreadful",
    "ugly",
    "horrible",
    "annoying",
    "disappointing",
]
_DEGREES = ("", "very ", "really ", "quite ", "rather ", "so ")
_NEGATIONS = ("not ", "never ", "hardly ")

_CUES = {
    "World": [
        "president",
        "embassy",
        "treaty",
        "border",
        "minister",
        "parliament",
        "refugees",
        "election",
        "summit",
        "diplomat",
    ],
    "Sports": [
        "team",
        "coach",
        "striker",
        "league",
        "goalkeeper",
        "stadium",
        "match",
        "tournament",
        "sprinter",
        "referee",
    ],
    "Business": [
        "bank",
        "shares",
        "profit",
        "investors",
        "merger",
        "market",
        "factory",
        "retailer",
        "exports",
        "earnings",
    ],
    "Science": [
        "scientists",
        "telescope",
        "genome",
        "satellite",
        "vaccine",
        "software",
        "robot",
        "laboratory",
        "comet",
        "fossil",
    ],
}
_HEADLINES = (
    "{a} and {b} in the news as {c} waits",
    "report says {a} changed {b} after {c}",
    "new {a} surprises {b} despite {c}",
    "{a}, {b} and {c}: what happens next",
    "how the {a} met the {b} near the {c}",
)


@dataclass(frozen=True, slots=True)
class Example:
    """A text and its label, before any task has put them into a prompt."""

    text: str
    label: str


def review(rng: random.Random) -> Example:
    """A review of one or two clauses; of two, the one that is not conceded decides."""
    first, second = _clause(rng), _clause(rng)
    shape = rng.random()
    if shape < 0.4:
        return first
    if shape < 0.7:
        return Example(f"{first.text} but {second.text}", second.label)
    return Example(f"although {first.text}, {second.text}", second.label)


def headline(rng: random.Random) -> Example:
    """A headline with two cue words of its topic and one of another."""
    topic, other = rng.sample(sorted(_CUES), 2)
    cues = [*rng.sample(_CUES[topic], 2), rng.choice(_CUES[other])]
    rng.shuffle(cues)
    return Example(rng.choice(_HEADLINES).format(a=cues[0], b=cues[1], c=cues[2]), topic)


def _clause(rng: random.Random) -> Example:
    is_good, is_negated = rng.random() < 0.5, rng.random() < 0.25
    word = rng.choice(_GOOD if is_good else _BAD)
    modifier = rng.choice(_NEGATIONS if is_negated else _DEGREES)
    label = "positive" if is_good != is_negated else "negative"
    return Example(f"the {rng.choice(_THINGS)} was {modifier}{word}", label)


@dataclass(frozen=True, slots=True)
class Task:
    """A customer's task: its texts, and the prompt that the customer writes around them."""

    name: str
    draw: Callable[[random.Random], Example]
    prompt: str

    def row(self, rng: random.Random) -> Conversation:
        """One training row."""
        example = self.draw(rng)
        return Conversation.single(self.prompt.format(text=example.text), example.label)


CUSTOMER_TASKS = {
    "reviews": Task(
        "reviews", review, "Classify the customer comment as positive or negative: {text}"
    ),
    "headlines": Task("headlines", headline, "Which desk should get this headline? {text}"),
}

# How pretraining asks for the same things.
PRETRAINING_TASKS: Sequence[Task] = (
    Task("reviews", review, "Review: {text}. Is it positive or negative?"),
    Task("reviews", review, "What does the critic feel, positive or negative? {text}"),
    Task("reviews", review, "Positive or negative comment: {text}"),
    Task("reviews", review, "{text}. Sentiment?"),
    Task("headlines", headline, "Headline: {text}. Topic?"),
    Task("headlines", headline, "Name the topic of the headline: {text}"),
    Task("headlines", headline, "{text}. Which section?"),
    Task("headlines", headline, "Which topic is this headline about? {text}"),
)


def distinct_rows(
    task: Task, count: int, rng: random.Random, *, avoid: set[str]
) -> list[Conversation]:
    """Draw rows whose prompts are distinct and not in `avoid`, to which they are added."""
    rows: list[Conversation] = []
    while len(rows) < count:
        row = task.row(rng)
        prompt = row.prompt[-1].content
        if prompt not in avoid:
            avoid.add(prompt)
            rows.append(row)
    return rows
