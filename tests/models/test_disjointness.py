"""Where held-out prompts turn up again in training, by file and line."""

from __future__ import annotations

from models.disjointness import Meeting, Overlap, Place, meetings, overlap
from models.near_duplicates import Likeness, PromptIndex
from models.rows import Conversation, Message

HELD_OUT = [
    (Place("a.jsonl", 1), "sew a red hat"),
    (Place("a.jsonl", 2), "bake brown bread"),
    (Place("b.jsonl", 1), "paint the old fence"),
]


def row(*turns: str, line: int = 0) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(
        tuple(Message(roles[number % 2], turn) for number, turn in enumerate(turns)),  # type: ignore[arg-type]
        line,
    )


class TestMeetings:
    def test_names_the_first_training_row_of_each_in_the_order_of_the_held_out(self) -> None:
        training = {
            "x.jsonl": [row("paint an old fence", "no"), row("knit", "no")],
            "y.jsonl": [row("Sew a red hat", "so", line=7), row("sew a red hat", "so", line=9)],
        }
        assert meetings(HELD_OUT, training) == [
            Meeting(Place("a.jsonl", 1), Place("y.jsonl", 7), Likeness.EXACT),
            Meeting(Place("b.jsonl", 1), Place("x.jsonl", 1), Likeness.NEAR),
        ]

    def test_answers_are_not_compared_and_earlier_turns_are(self) -> None:
        answered = {"x.jsonl": [row("knit", "bake brown bread")]}
        assert meetings(HELD_OUT, answered) == []
        earlier = {"x.jsonl": [row("bake brown bread", "no", "why", "so")]}
        assert [m.held_out for m in meetings(HELD_OUT, earlier)] == [Place("a.jsonl", 2)]


def test_overlap_gives_each_row_once_by_its_strongest_likeness() -> None:
    index = PromptIndex(prompt for _, prompt in HELD_OUT)
    rows = [
        row("knit", "no", line=1),
        row("paint an old fence", "a", "bake brown bread", "b", line=3),
        row("tell me how to sew a red hat", "c", line=4),
    ]
    found = overlap(index, rows)
    assert found == Overlap(exact=(3,), near=(4,))
    assert found.rows == 2
