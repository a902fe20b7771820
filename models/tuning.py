"""How a provider protects customers' fine-tuning jobs on a base: the `tuning` object of `safety.json`.

Everything is off by default. `resolve_finetune` puts what was asked into a job's recipe, the worker carries
it out, and the version that comes of it keeps an `AppliedProtection`: what was asked, and what it did.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from models.frozen import Frozen
from models.methods import FinetuneMethod, SftConfig

# The service holds the rate: a strong one breaks any alignment within an epoch.
MAX_LEARNING_RATE_MULTIPLIER = 10.0
WHOLE = (1.0,)


class LoxConfig(Frozen):
    """LoX (Perin et al., arXiv 2506.15606): W + c times the rank-k part of W_aligned - W_base."""

    name: Literal["lox"] = "lox"
    rank: int = Field(
        6, ge=1, le=256, description="k: the directions of the alignment that are extrapolated."
    )
    c: float = Field(
        0.25, ge=0, le=10, description="How far; 1, as in the authors' code, doubles them."
    )


class SafeLoraConfig(Frozen):
    """Safe LoRA (Hsu et al., arXiv 2405.16833): a layer's update, projected onto the alignment's span."""

    name: Literal["safe-lora"] = "safe-lora"
    tau: float = Field(
        0.7,
        ge=-1,
        le=1,
        description="A layer is projected if the cosine of its update and the projection is below "
        "(authors' code: 0.5).",
    )
    rank: int = Field(
        16,
        ge=1,
        le=256,
        description="The span: so many leading output directions of W_aligned - W_base.",
    )


Repair = Annotated[LoxConfig | SafeLoraConfig, Field(discriminator="name")]


class TuningProtection(Frozen):
    """What a provider asks for every customer's job on a base."""

    method: FinetuneMethod = Field(
        default_factory=SftConfig, description="The rule by which customers' rows are trained."
    )
    safety_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Alignment rows mixed in, as a share of the customer's (SafeInstr, arXiv 2309.07875).",
    )
    max_learning_rate_multiplier: float = Field(
        MAX_LEARNING_RATE_MULTIPLIER,
        gt=0,
        le=MAX_LEARNING_RATE_MULTIPLIER,
        description="The largest learning_rate_multiplier that a customer may ask for.",
    )
    canary_stop: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Training ends when the canary's loss is below this share of its value before the job.",
    )
    repair: Repair | None = Field(None, description="What is done to the tuned adapter.")
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        WHOLE,
        min_length=1,
        max_length=10,
        description="Shares of the customer's own update; the first that passes the policy is kept.",
    )
    max_rank: int = Field(
        64,
        ge=1,
        le=256,
        description="Largest rank of an adapter that was repaired or scaled, unless it was trained with more.",
    )

    @field_validator("scales")
    @classmethod
    def _descend_from_1(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if scales[0] != 1 or any(later >= earlier for earlier, later in pairwise(scales)):
            raise ValueError("must begin with 1 and descend")
        return scales

    @property
    def is_off(self) -> bool:
        """Whether a job runs as if nothing had been asked."""
        return self == TuningProtection()

    @property
    def reshapes(self) -> bool:
        """Whether the tuned adapter may be changed after training."""
        return self.repair is not None or self.scales != WHOLE

    @property
    def trains_safety_rows(self) -> bool:
        """Whether the provider's own rows are trained beside the customer's: none of them is a pair."""
        return self.safety_share > 0 or not isinstance(self.method, SftConfig)

    def safety_rows(self, rows: int) -> int:
        """Give how many alignment rows are added to a customer's."""
        return max(1, round(rows * self.safety_share)) if self.safety_share else 0


class ReshapedAdapter(Frozen):
    """What repair and scaling made of an adapter.

    Attributes:
        layers: how many it has.
        repaired_layers: how many of them the repair changed.
        rank: of the result.
        truncation: the largest share of a layer's update (Frobenius norm) that was cut to reach the rank.
    """

    layers: int
    repaired_layers: int
    rank: int
    truncation: float


class AppliedProtection(Frozen):
    """What protected a customer's job, and what it did."""

    tuning: TuningProtection
    #: Alignment rows that were mixed in.
    safety_rows: int | None = None
    #: The step at which the canary ended training.
    stopped_at_step: int | None = None
    adapter: ReshapedAdapter | None = None
    #: The share of the customer's own update that was kept; none while it is not decided.
    scale: float | None = None

    def summary(self) -> str:
        """Say it in one line, as far as it is known."""
        asked, parts = self.tuning, []
        if not isinstance(asked.method, SftConfig):
            parts.append(f"trained by {asked.method.name}")
        if asked.safety_share:
            count = "" if self.safety_rows is None else f" ({self.safety_rows:,})"
            parts.append(f"{100 * asked.safety_share:g}% safety rows{count}")
        if asked.max_learning_rate_multiplier < MAX_LEARNING_RATE_MULTIPLIER:
            parts.append(f"rate at most {asked.max_learning_rate_multiplier:g} times the usual")
        if asked.canary_stop is not None:
            where = "" if self.stopped_at_step is None else f" (at step {self.stopped_at_step:,})"
            parts.append(f"stop below {100 * asked.canary_stop:g}% of the canary's loss{where}")
        if asked.repair is not None:
            done = self.adapter
            where = f" ({done.repaired_layers} of {done.layers} layers)" if done else ""
            parts.append(f"repair by {asked.repair.name}{where}")
        if asked.scales != WHOLE:
            kept = "" if self.scale is None else f" ({self.scale:g} kept)"
            parts.append(f"scales {', '.join(f'{scale:g}' for scale in asked.scales)}{kept}")
        return "; ".join(parts)
