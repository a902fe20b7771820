"""Evidence as clients see it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from api.safety.signature import ALGORITHM, VerifyingKey
from api.schemas import JsonObject, Listing, Schema
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
