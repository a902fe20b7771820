"""Alignment jobs as operators ask for them. They are shown as every other job."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from api.jobs.schemas import Metadata, Seed
from api.registry.names import ModelName
from api.schemas import Identifier, Schema
from models.hyperparameters import AlignHyperparameters
from models.methods import AlignmentMethod, TiterConfig
from models.presets import PresetName


class CreateAlignment(Schema):
    """Which base to harden, and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "my-base"},
                {
                    "model": "my-base",
                    "method": {"name": "booster", "lambda": 20},
                    "preset": "reference",
                    "name": "my-base-hard",
                },
            ]
        }
    )

    model: Identifier = Field(
        description="A registered base, or an aligned model to be aligned further."
    )
    method: AlignmentMethod = Field(
        default_factory=TiterConfig,
        description='For example {"name": "booster", "lambda": 20}; by default Titer\'s own.',
    )
    hyperparameters: AlignHyperparameters = Field(default_factory=AlignHyperparameters)
    preset: PresetName = Field(
        "service",
        description="Where what `method` and `hyperparameters` leave open comes from: `service`, what was chosen on "
        "the sandbox; `reference`, as Booster's authors ran it; `modern`, for today's chat models.",
    )
    name: ModelName | None = Field(
        None, description="Public name of the new version; by default the base's and the method's."
    )
    seed: Seed | None = None
    metadata: Metadata | None = None
