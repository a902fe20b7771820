"""The bases of every request and response body. Knows no noun of the service."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, StringConstraints

Item = TypeVar("Item", bound=BaseModel)

MAX_PAGE = 1_000

# Named here because most objects of the API have a field called `object`, which hides the type.
JsonObject = dict[str, object]


class Schema(BaseModel):
    """A body. Unknown fields are refused by name: a misspelt option must not pass silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Listing(Schema, Generic[Item]):
    """One page of a list, as the client's cursor pages read it."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False


class Deleted(Schema):
    """The answer to a deletion; an empty body would make the stock client raise."""

    id: str
    object: str
    deleted: Literal[True] = True


Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256)]
PageLimit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Objects on one page.")]
After = Annotated[
    Identifier | None, Query(description="Id of the last object of the page before this one.")
]
