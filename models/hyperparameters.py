"""Hyper-parameters: one frozen definition for HTTP, the database and the trainers.

Letters follow the papers. Every bound exists so that a request cannot ask for something that breaks a
worker; defaults are the service's, and where a paper's differ the field says so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

AdapterMode = Literal["continued", "fresh"]


class Frozen(BaseModel):
    """A value object: immutable, and refusing unknown fields by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraConfig(Frozen):
    """Low-rank adapter (Hu et al., arXiv 2106.09685): W' = W + (alpha / r) B A."""

    r: int = Field(8, ge=1, le=256, description="Rank of the update.")
    alpha: float = Field(16.0, gt=0, le=1024, description="Scale; the update is multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers to adapt, or all but the output layer."
    )


class TrainConfig(Frozen):
    """What the optimiser loop needs, whatever the gradient rule."""

    learning_rate: float = Field(2e-4, gt=0, le=1, description="AdamW's peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's decoupled weight decay.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Decay after warm-up, to 0 at the last step."
    )
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of the steps that ramps up from 0.")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Global norm to which the combined gradient is clipped; none: no clipping."
    )
    batch_size: int = Field(10, ge=1, le=256, description="Rows an optimiser step sees.")
    micro_batch_size: int | None = Field(
        None, ge=1, le=256, description="Rows a forward pass sees (accumulation); none: the whole batch."
    )
    steps: int = Field(..., ge=1, le=10_000_000, description="Optimiser steps.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seeds the order of rows and the adapter's start.")
    max_length: int = Field(512, ge=8, le=131_072, description="Tokens of a row that are kept.")


class SftConfig(Frozen):
    """Supervised fine-tuning on the alignment data: the baseline of every comparison."""

    name: Literal["sft"] = "sft"


class BoosterConfig(Frozen):
    """Booster (Huang et al., arXiv 2409.01586): G = grad f + lambda (grad h(w) - grad h(w'))."""

    name: Literal["booster"] = "booster"
    lambda_: float = Field(
        20.0, ge=0, le=10_000, alias="lambda", description="Weight of the loss-drop penalty (paper: 5)."
    )
    alpha: float = Field(
        0.005, gt=0, le=100, description="Length of the simulated harmful step (paper: 0.1)."
    )
    harmful_batch_size: int | None = Field(
        None, ge=1, le=256, description="Harmful rows a step; none: as many as alignment rows."
    )

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


AlignmentMethod = Annotated[SftConfig | BoosterConfig, Field(discriminator="name")]
