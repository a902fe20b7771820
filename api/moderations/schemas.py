"""What is to be moderated, and what is said of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from api.inference.schemas import TextPart
from api.schemas import Identifier, Schema

MAX_INPUTS = 128
MAX_CHARACTERS = 100_000
LATEST = "omni-moderation-latest"

#: OpenAI's categories. Every result has them all.
CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class ModerationRequest(Schema):
    """OpenAI's moderation request, for text, and one field more."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    model: Identifier = Field(
        LATEST, description="OpenAI's names are the service's judge, a model's name is its own."
    )
    prompts: Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)] | None = Field(
        None, description="Titer's own: what each input is the answer to."
    )

    @field_validator("prompts")
    @classmethod
    def _one_for_each_input(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        given = info.data.get("input")
        if value is not None and given is not None and len(value) != len(_texts(given)):
            raise ValueError("there must be one for each input")
        return value

    def exchanges(self) -> list[dict[str, str]]:
        """Give what the judge is to read."""
        answers = _texts(self.input)
        prompts = self.prompts or [""] * len(answers)
        return [
            {"prompt": prompt, "answer": answer}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]


class Result(Schema):
    """What is said of one input."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class JudgeName(Schema):
    """Which judge it was."""

    name: str
    revision: str


class ModerationObject(Schema):
    """One result for each input. `judge` is Titer's own."""

    id: str
    model: str
    results: list[Result]
    judge: JudgeName


def _texts(given: str | list[str] | list[TextPart]) -> list[str]:
    """Give the inputs; parts of one message are one input."""
    if isinstance(given, str):
        return [given]
    parts = [entry.text for entry in given if isinstance(entry, TextPart)]
    return ["\n".join(parts)] if parts else [entry for entry in given if isinstance(entry, str)]
