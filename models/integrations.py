"""Trackers that a customer wants a job's training curve sent to, in the form of OpenAI's `integrations`.

Where a tracker is and with which key it is written to are settings of whoever runs the service; a request
names neither, so that it cannot make a worker call an address of its choice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter

from models.frozen import Frozen

MAX_INTEGRATIONS = 5

# What W&B and MLflow take for a name without escaping it into something else.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")]

Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 _.:/@-]{1,64}$")]


class Wandb(Frozen):
    """A run at Weights & Biases."""

    project: Name
    name: Name | None = None
    #: Kept and shown; runs are written where the service's own key belongs.
    entity: Name | None = None
    tags: list[Tag] | None = Field(None, max_length=16)


class WandbIntegration(Frozen):
    """The form of OpenAI's schema."""

    type: Literal["wandb"]
    wandb: Wandb


class Mlflow(Frozen):
    """A run of an MLflow experiment."""

    experiment: Name = "titer"
    name: Name | None = None
    tags: dict[Name, Annotated[str, StringConstraints(max_length=256)]] | None = Field(
        None, max_length=16
    )


class MlflowIntegration(Frozen):
    """In the same form, beyond OpenAI's schema."""

    type: Literal["mlflow"]
    mlflow: Mlflow = Field(default_factory=Mlflow)


Integration = Annotated[WandbIntegration | MlflowIntegration, Field(discriminator="type")]
INTEGRATIONS: TypeAdapter[list[WandbIntegration | MlflowIntegration]] = TypeAdapter(
    list[Integration]
)
