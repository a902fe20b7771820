"""Hyper-parameters: one frozen definition for HTTP, the database and the trainers.

Letters follow the papers. Every bound exists so that a request cannot ask for something that breaks a
worker; defaults are the service's, and where a paper's differ the field says so.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from models.errors import DomainError
from models.frozen import Frozen
from models.methods import (
    AlignmentMethod,
    DpoConfig,
    LisaConfig,
    Method,
    SftConfig,
    TiterConfig,
)
from models.tuning import MAX_LEARNING_RATE_MULTIPLIER, TuningProtection

MAX_STEPS = 10_000_000


Parameters = Literal["adapter", "full"]
#: By which label of the safety set's harmful rows the simulated attack draws equally often.
Balance = Literal["none", "category", "source"]


class TooManySteps(DomainError):
    """The file, the batch size and the epochs together ask for too many optimiser steps."""

    code = "too_many_steps"


class LearningRateTooHigh(DomainError):
    """The provider of this model allows no such learning rate."""

    code = "learning_rate_too_high"


class ProtectionNeedsRows(DomainError):
    """The provider of this model protects jobs in a way that pairs of answers cannot be trained in."""

    code = "unsupported_method"


class LoraConfig(Frozen):
    """Low-rank adapter (Hu et al., arXiv 2106.09685): W' = W + (alpha / r) B A."""

    r: int = Field(8, ge=1, le=256, description="Rank of the update.")
    alpha: float = Field(
        16.0, gt=0, le=1024, description="Scale; the update is multiplied by alpha / r."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear",
        description="Names of the linear layers to adapt, or all but the output layer.",
    )


class TrainConfig(Frozen):
    """What the optimiser loop needs, whatever the gradient rule."""

    learning_rate: float = Field(2e-4, gt=0, le=1, description="AdamW's peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's decoupled weight decay.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Decay after warm-up, to 0 at the last step."
    )
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the steps that ramps up from 0."
    )
    max_grad_norm: float | None = Field(
        1.0,
        gt=0,
        description="Global norm to which the combined gradient is clipped; none: no clipping.",
    )
    batch_size: int = Field(10, ge=1, le=256, description="Rows an optimiser step sees.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Rows a forward pass sees (accumulation); none: the whole batch.",
    )
    steps: int = Field(..., ge=1, le=MAX_STEPS, description="Optimiser steps.")
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Seeds the order of rows and the adapter's start."
    )
    max_length: int = Field(512, ge=8, le=131_072, description="Tokens of a row that are kept.")
    packing: bool = Field(
        False,
        description="Lay the rows of a batch end to end instead of padding them: the same numbers, fewer tokens "
        "to compute. Not every architecture tells packed rows apart, and RepNoise cannot use it.",
    )


#: When an answer to a validation row counts as right; `worker.scorers` has the rules.
ScorerName = Literal["exact", "sst2", "agnews", "gsm8k"]

# The service's own learning rate for customers' jobs; they choose a multiple of it.
FINETUNE_LEARNING_RATE = 1e-4
# Pairs go by a smaller one: at 1e-4 margins are past all use within an epoch, and refusals of harm go along with
# refusals of anything else (docs/dpo.md has the measurement).
DPO_LEARNING_RATE = 3e-5
FINETUNE_BATCH_SIZE = 10
FINETUNE_EPOCHS = 1
ALIGN_LEARNING_RATE = 1e-3
# A step in full parameters moves far more numbers than an adapter's.
ALIGN_FULL_LEARNING_RATE = 3e-4
ALIGN_STEPS = 1_500


class FinetuneHyperparameters(Frozen):
    """What a customer may choose; `auto` leaves the choice to the service."""

    n_epochs: Annotated[int, Field(ge=1, le=50)] | Literal["auto"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    learning_rate_multiplier: (
        Annotated[float, Field(gt=0, le=MAX_LEARNING_RATE_MULTIPLIER)] | Literal["auto"]
    ) = "auto"


class DpoHyperparameters(FinetuneHyperparameters):
    """What a customer may choose of direct preference optimisation."""

    beta: Annotated[float, Field(gt=0, le=2)] | Literal["auto"] = "auto"


class AlignHyperparameters(Frozen):
    """What a provider may choose for an alignment job; the defaults suit the sandbox base."""

    steps: int = Field(ALIGN_STEPS, ge=1, le=1_000_000, description="Optimiser steps.")
    batch_size: int = Field(10, ge=1, le=256, description="Alignment rows a step sees.")
    parameters: Parameters | None = Field(
        None,
        description="What is trained: a LoRA adapter, or all linear weights but the output layer's, which "
        "needs the memory of full fine-tuning and stores a whole model; none: full for titer, else adapter.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="AdamW's peak learning rate (paper: 5e-4); none: 1e-3 for adapters, 3e-4 for full weights.",
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="AdamW's decoupled decay (paper: 0.1)."
    )
    micro_batch_size: int | None = Field(None, ge=1, le=256)
    max_length: int = Field(512, ge=8, le=131_072)
    packing: bool = False
    balance: Balance = Field(
        "none",
        description="Draw harmful rows of every category, or of every source, equally often, whatever their numbers.",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig)


class Recipe(Frozen):
    """A job's hyper-parameters with nothing left open: what the worker runs and the record keeps."""

    method: Annotated[Method, Field(discriminator="name")] = Field(default_factory=SftConfig)
    train: TrainConfig
    parameters: Parameters = "adapter"
    balance: Balance = "none"
    #: Used where the job starts a fresh adapter; a continued adapter brings its own.
    lora: LoraConfig = Field(default_factory=LoraConfig)
    n_epochs: int | None = None
    learning_rate_multiplier: float | None = None
    #: How the provider protects the job; its rule stands in `method`.
    tuning: TuningProtection = Field(default_factory=TuningProtection)
    metrics_every: int = Field(1, ge=1, description="Steps between two metrics events.")
    canary_every: int = Field(5, ge=1, description="Steps between two canary measurements.")
    scorer: ScorerName = Field(
        "exact", description="When an answer to a validation row counts as right."
    )
    screen: bool = Field(False, description="Whether the customer asked for a data risk report.")
    evaluate_checkpoints: bool = Field(
        False, description="Whether the gate decides on the weights at the end of epochs, too."
    )

    @property
    def epoch_ends(self) -> tuple[int, ...]:
        """The steps, counted from 1, that end an epoch; the last is the run's last step.

        Where the provider's own turns come between the customer's (Lisa), the rows' epochs end near them.
        """
        epochs = self.n_epochs or 1
        return tuple(max(1, self.train.steps * epoch // epochs) for epoch in range(1, epochs + 1))


def resolve_finetune(
    asked: FinetuneHyperparameters,
    *,
    rows: int,
    seed: int,
    tuning: TuningProtection | None = None,
) -> Recipe:
    """Fill in every `auto` of a customer's job.

    Args:
        asked: what the customer chose.
        rows: of the training file, at least one.
        seed: of the job.
        tuning: how the provider protects the job. Rows that it mixes in, and Lisa's alignment turns, come
            on top of the customer's steps.

    Raises:
        TooManySteps: the job would be longer than any that is accepted.
        LearningRateTooHigh: the provider allows no such rate.
        ProtectionNeedsRows: the job is to learn from pairs, and the provider mixes safety rows into training.
    """
    tuning = tuning or TuningProtection()
    method = _method(asked, tuning)
    is_paired = isinstance(method, DpoConfig)
    epochs = FINETUNE_EPOCHS if asked.n_epochs == "auto" else asked.n_epochs
    batch = min(FINETUNE_BATCH_SIZE, rows) if asked.batch_size == "auto" else asked.batch_size
    multiplier = _multiplier(asked, tuning)
    trained = rows + tuning.safety_rows(rows)
    steps = math.ceil(trained / batch) * epochs
    if isinstance(tuning.method, LisaConfig):
        steps = tuning.method.total_steps(steps)
    if steps > MAX_STEPS:
        raise TooManySteps(
            f"{trained:,} rows in batches of {batch} for {epochs} epochs are {steps:,} steps; "
            f"the limit is {MAX_STEPS:,}. Ask for fewer epochs or a larger batch_size.",
            param="hyperparameters",
        )
    return Recipe(
        method=method,
        train=TrainConfig(
            learning_rate=(DPO_LEARNING_RATE if is_paired else FINETUNE_LEARNING_RATE) * multiplier,
            batch_size=batch,
            # Two answers to each row are in memory together.
            micro_batch_size=math.ceil(batch / 2) if is_paired else None,
            steps=steps,
            seed=seed,
        ),
        n_epochs=epochs,
        learning_rate_multiplier=multiplier,
        tuning=tuning,
        # About two hundred points draw a curve; more would only fill the event log.
        metrics_every=max(1, steps // 200),
        canary_every=max(5, steps // 40),
    )


def _method(asked: FinetuneHyperparameters, tuning: TuningProtection) -> Method:
    if not isinstance(asked, DpoHyperparameters):
        return tuning.method
    if tuning.trains_safety_rows:
        how = "safety_share" if isinstance(tuning.method, SftConfig) else tuning.method.name
        raise ProtectionNeedsRows(
            f"This model's provider protects fine-tuning with safety rows ({how}), which are no pairs of "
            "answers and cannot be trained beside them. Use the method 'supervised'.",
            param="method",
        )
    return DpoConfig() if asked.beta == "auto" else DpoConfig(beta=asked.beta)


def _multiplier(asked: FinetuneHyperparameters, tuning: TuningProtection) -> float:
    limit = tuning.max_learning_rate_multiplier
    if asked.learning_rate_multiplier == "auto":
        return min(1.0, limit)
    if asked.learning_rate_multiplier > limit:
        raise LearningRateTooHigh(
            f"A learning_rate_multiplier of {asked.learning_rate_multiplier:g} is more than this model's "
            f"provider allows; the limit is {limit:g}.",
            param="hyperparameters",
        )
    return asked.learning_rate_multiplier


def resolve_align(method: AlignmentMethod, asked: AlignHyperparameters, *, seed: int) -> Recipe:
    """Make the recipe of an alignment job."""
    parameters = asked.parameters or ("full" if isinstance(method, TiterConfig) else "adapter")
    usual = ALIGN_LEARNING_RATE if parameters == "adapter" else ALIGN_FULL_LEARNING_RATE
    return Recipe(
        method=method,
        parameters=parameters,
        balance=asked.balance,
        train=TrainConfig(
            learning_rate=asked.learning_rate or usual,
            weight_decay=asked.weight_decay,
            schedule=asked.schedule,
            batch_size=asked.batch_size,
            micro_batch_size=asked.micro_batch_size,
            steps=asked.steps,
            seed=seed,
            max_length=asked.max_length,
            packing=asked.packing,
        ),
        lora=asked.lora,
        metrics_every=max(1, asked.steps // 200),
        canary_every=max(5, asked.steps // 40),
    )
