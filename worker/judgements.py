"""What the judge of a safety set says about exchanges that the api sends: the work behind /v1/moderations."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from worker.judgement import Judge, JudgeError

MAX_EXCHANGES = 128


class Exchange(BaseModel):
    """A text, and what it is the answer to."""

    prompt: str
    answer: str


class JudgementRequest(BaseModel):
    """Whose safety set names the judge, and what it is to read."""

    model: str
    exchanges: Annotated[list[Exchange], Field(min_length=1, max_length=MAX_EXCHANGES)]


def judge_exchanges(judge: Judge, asked: JudgementRequest) -> dict[str, object]:
    """Judge every exchange, and name the judge.

    Raises:
        JudgeError: there is no judgement on one of them.
    """
    judgements = judge.judge(
        [exchange.prompt for exchange in asked.exchanges],
        [exchange.answer for exchange in asked.exchanges],
    )
    if len(judgements) != len(asked.exchanges):
        raise JudgeError("The judge said more or less than it was asked.")
    identity = judge.identity
    return {
        "judge": {"name": identity.name, "revision": identity.revision},
        "judgements": [
            {"is_harmful": judgement.is_harmful, "category": judgement.category}
            for judgement in judgements
        ],
    }
