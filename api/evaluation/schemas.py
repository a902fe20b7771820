"""Evaluation jobs as operators ask for them."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from api.jobs.schemas import Metadata
from api.schemas import Identifier, Schema


class CreateEvaluation(Schema):
    """Which model to measure anew."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "my-base-titer"}]})

    model: Identifier = Field(
        description="A base, an aligned or a tuned model, whatever its gate says."
    )
    metadata: Metadata | None = None
