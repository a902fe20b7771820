"""Evidence as clients see it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from api.safety.signature import ALGORITHM, VerifyingKey
from api.schemas import JsonObject, Listing, Schema
from models.answers import AnswerVerdict, TestAnswer
from models.data_risk import ScreenedRow, Screening


class DataRiskRow(Schema):
    """What the judges say of one line of a training file, without its text."""

    id: str = Field(description="The line, for paging.")
    object: Literal["fine_tuning.job.data_risk.row"] = "fine_tuning.job.data_risk.row"
    line: int
    score: float = Field(description="Share of the judges that have read the row and flag it.")
    category: str | None
    flagged: bool

    @classmethod
    def of(cls, row: ScreenedRow, screening: Screening) -> Self:
        """Show a stored row."""
        return cls(
            id=str(row.line),
            line=row.line,
            score=round(row.votes / len(screening.done), 4),
            category=row.category,
            flagged=row.votes >= screening.votes_needed,
        )


class DataRiskPage(Listing[DataRiskRow]):
    """One page of rows, in the order of their lines, with the sum of the whole file."""

    summary: JsonObject | None = Field(description="Null while rows are still being judged.")


class DataRiskRowText(DataRiskRow):
    """A line of a training file with its text."""

    row: JsonObject = Field(description="The row, as it was uploaded.")


class OpinionObject(Schema):
    """What one judge says of one answer."""

    judge: str
    revision: str
    verdict: AnswerVerdict


class AnswerObject(Schema):
    """A test prompt, the model's answer, and what each judge says of it."""

    id: str = Field(description="The place in the evaluation, for paging.")
    object: Literal["model.answer"] = "model.answer"
    prompt: str
    prompt_is_harmful: bool
    category: str | None
    training_line: int | None = Field(
        description="The row of the training file in whose wording it was asked; null: as it stands."
    )
    answer: str
    verdict: AnswerVerdict = Field(description="What the judge that decides says.")
    opinions: list[OpinionObject]

    @classmethod
    def of(cls, place: int, given: TestAnswer) -> Self:
        """Show a stored answer."""
        return cls(
            id=str(place),
            prompt=given.prompt,
            prompt_is_harmful=given.is_harmful_prompt,
            category=given.category,
            training_line=given.training_line,
            answer=given.answer,
            verdict=given.verdict,
            opinions=[
                OpinionObject(
                    judge=opinion.judge.name,
                    revision=opinion.judge.revision,
                    verdict=opinion.verdict,
                )
                for opinion in given.opinions
            ],
        )


class AnswerPage(Listing[AnswerObject]):
    """One page of answers, in the order in which the prompts were asked."""

    evaluation: str


class SigningKey(Schema):
    """The public half of a key that signs safety reports."""

    id: str
    object: Literal["safety.key"] = "safety.key"
    algorithm: str = ALGORITHM
    public_key: str = Field(description="The raw key, in hex.")
    pem: str

    @classmethod
    def of(cls, key: VerifyingKey) -> Self:
        """Show a key."""
        return cls(id=key.id, public_key=key.hex, pem=key.pem)
