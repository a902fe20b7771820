"""Models as clients see them, and what operators send about them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.registry.names import ModelName
from api.schemas import Identifier, JsonObject, Schema


class ModelObject(Schema):
    """A model version. The first five fields are OpenAI's; the others show lineage and safety."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: str | None = None

    kind: str = Field(description="`base`, `aligned` or `tuned`.")
    gate: str = Field(description="`pending`, `released`, `held` or `blocked`.")
    gate_reasons: list[str]
    parent: str | None
    root: str
    method: str | None = Field(description="How the lineage was aligned.")
    job: str | None
    recipe: JsonObject = Field(description="Every hyper-parameter of its making.")
    data_hashes: dict[str, str] = Field(description="sha256 of what it was made from.")
    safety: JsonObject | None
    source: dict[str, str] | None = Field(description="Where a base's files are; operators only.")


class CreateBase(Schema):
    """Which base to register, and the safety set to align and measure it with."""

    source: str = Field(
        min_length=1, max_length=4096, description="A folder on the server, or a hub repository."
    )
    revision: str | None = Field(
        None, min_length=1, max_length=256, description="A branch, tag or commit of the hub."
    )
    name: ModelName | None = Field(None, description="Public name; by default the source's own.")
    safety_set: str = Field(
        min_length=1, max_length=4096, description="A safety set's folder on the server."
    )


class Review(Schema):
    """A person's decision on a held model."""

    decision: Literal["release", "reject"]
    reason: str = Field(min_length=1, max_length=1000, description="Kept in the job's log.")


class ReviewedModel(Schema):
    """What the decision made of the model and of the job that waited for it."""

    model: ModelObject
    job: Identifier
    status: str
