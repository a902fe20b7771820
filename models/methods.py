"""Methods of the alignment stage and of the fine-tuning stage: one frozen definition each.

Letters follow the papers; where a default is not the paper's, the field says so. `worker.trainers.methods`
builds the gradient rule that belongs to each.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from models.frozen import Frozen


class SftConfig(Frozen):
    """Supervised fine-tuning: the baseline of every comparison."""

    name: Literal["sft"] = "sft"


class VaccineConfig(Frozen):
    """Vaccine (Huang et al., arXiv 2402.01109): SFT under the worst shift of the hidden embeddings."""

    name: Literal["vaccine"] = "vaccine"
    rho: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="Norm of the shift over the whole batch (paper: 2; Booster's comparison: 5 or 2).",
    )


class RepNoiseConfig(Frozen):
    """RepNoise (Rosati et al., arXiv 2405.14577): harmful representations become noise."""

    name: Literal["repnoise"] = "repnoise"
    alpha: float = Field(
        1.0, ge=0, le=100, description="Weight of the ascent term (Booster's comparison: 0.1)."
    )
    beta: float = Field(0.001, ge=0, le=100, description="Weight of the noise term.")
    paired: bool = Field(
        True,
        description="Harmful and harmless answers to the same prompts, as in its paper; false: drawn "
        "independently, as in Booster's comparison.",
    )
    mask: Literal["answers", "reference"] = Field(
        "answers",
        description="Which tokens count; reference: as the authors' code has it (first tokens teach nothing).",
    )
    harmful_batch_size: int | None = Field(
        None, ge=1, le=256, description="Harmful rows a step; none: as many as alignment rows."
    )


class Attacker(StrEnum):
    """Which weights the simulated attacker moves."""

    OWN = "own"
    """Those that are trained."""
    FRESH_ADAPTER = "fresh-adapter"
    """A LoRA adapter of its own, as a customer would start one on the merged model."""


class OuterLoss(StrEnum):
    """What Booster asks for at w', the weights after the simulated step."""

    LOSS_DROP = "loss-drop"
    """The paper's: the step should not have lowered the harmful loss."""
    ASCENT = "ascent"
    """The harmful loss should be high, and the less so the higher it is: -log h(w')."""
    REFUSAL = "refusal"
    """The alignment rows should still be answered as before."""
    COLLAPSE = "collapse"
    """The model should be good for nothing: one token for everything (CTRAP, arXiv 2505.16559)."""


class BoosterConfig(Frozen):
    """Booster (Huang et al., arXiv 2409.01586) and its extensions.

    G = grad f(w) + lambda (grad h(w) - grad h(w')),  w' = w - alpha grad h(w) / ||grad h(w)||. With only
    `lambda` and `alpha` set it is the paper's; every other field is an extension and off by default.
    """

    name: Literal["booster"] = "booster"
    lambda_: float = Field(
        20.0, ge=0, le=10_000, alias="lambda", description="Weight of the penalty (paper: 5)."
    )
    alpha: float = Field(
        0.005, gt=0, le=100, description="Length of the simulated harmful step (paper: 0.1)."
    )
    harmful_batch_size: int | None = Field(
        None, ge=1, le=256, description="Harmful rows a step; none: as many as alignment rows."
    )
    ratio: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Adaptive lambda: the penalty's gradient gets this many times the norm of grad f in "
        "every step. `lambda` is then not read.",
    )
    max_lambda: float = Field(
        100.0, gt=0, le=1_000_000, description="Bound on the adaptive lambda."
    )
    project: bool = Field(
        False, description="Drop the part of the penalty's gradient that points against grad f."
    )
    clip_terms: float | None = Field(
        None, gt=0, description="Norm to which grad f and the penalty's gradient are clipped, each."
    )
    is_alpha_relative: bool = Field(
        False, description="`alpha` is a share of the norm of the trained weights."
    )
    start: float = Field(
        0.0, ge=0, lt=1, description="Late: the share of the steps that runs as plain SFT first."
    )
    every: int = Field(
        1,
        ge=1,
        le=1000,
        description="Lazy: take the penalty in every so-many-th step, with so many times its weight.",
    )
    inner_steps: int = Field(
        1,
        ge=0,
        le=64,
        description="Steps of the simulated attacker; together they are alpha long. 0: no attack, w' = w.",
    )
    inner_rule: Literal["gradient", "sign"] = Field(
        "gradient",
        description="Direction of an inner step: the gradient's, or its signs' (as Adam's).",
    )
    alpha_spread: float = Field(
        1.0,
        ge=1,
        le=100,
        description="Random attacker: each step draws its alpha log-uniformly from "
        "[alpha / spread, alpha * spread].",
    )
    attacker: Attacker = Field(
        Attacker.OWN, description="Which weights the simulated attacker moves."
    )
    attacker_rank: int = Field(8, ge=1, le=256, description="Rank of the fresh adapter.")
    attacker_every: int = Field(
        1, ge=1, le=100_000, description="Steps until the fresh adapter is drawn anew."
    )
    outer_loss: OuterLoss = Field(OuterLoss.LOSS_DROP, description="What is asked for at w'.")

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    @property
    def needs_adapter(self) -> bool:
        """Whether the simulated attacker moves an adapter of its own."""
        return self.attacker == Attacker.FRESH_ADAPTER and not self.is_off

    @property
    def is_off(self) -> bool:
        """Whether the penalty has no weight, so that this is SFT."""
        return self.lambda_ == 0 if self.ratio is None else self.ratio == 0


class BoosterVaccineConfig(BoosterConfig):
    """Booster with Vaccine's gradient in the place of grad f."""

    name: Literal["booster+vaccine"] = "booster+vaccine"  # type: ignore[assignment]
    rho: float = Field(2.0, ge=0, le=1000, description="Vaccine's shift (Booster's authors: 5).")


# An adapter is a short vector, and a simulated step in it is as much shorter (docs/results.md).
TITER_ADAPTER_ALPHA = 0.005


class TiterConfig(BoosterConfig):
    """Titer's own: Booster's simulated attack, with bounded ascent on the harmful loss after it, late.

    G = grad f(w) - lambda_t grad h(w') / h(w'), from `start` on; lambda_t keeps the two gradients' norms in
    proportion. Where Booster asks that the harmful loss should not fall, this asks that it should be high.
    """

    name: Literal["titer"] = "titer"  # type: ignore[assignment]
    ratio: float | None = Field(
        0.3, ge=0, le=100, description="Norm of the penalty's gradient, as a multiple of grad f's."
    )
    alpha: float = Field(0.02, gt=0, le=100, description="Length of the simulated harmful step.")
    start: float = Field(
        0.7, ge=0, lt=1, description="The share of the steps that runs as plain SFT first."
    )
    outer_loss: OuterLoss = OuterLoss.ASCENT


class LisaConfig(Frozen):
    """Lisa (Huang et al., arXiv 2405.18641): turns of safety rows and of the customer's, held together."""

    name: Literal["lisa"] = "lisa"
    rho: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Pull to where the other turn ended (Booster's comparison: 0.01).",
    )
    alignment_steps: int = Field(
        100, ge=0, le=100_000, description="K1: steps of a turn on safety rows."
    )
    user_steps: int = Field(
        900, ge=1, le=100_000, description="K2: steps of a turn on the customer's rows."
    )
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Share of all steps before which nothing pulls."
    )

    def total_steps(self, user_steps: int) -> int:
        """Give how long a run is in which so many steps are the customer's: each turn of theirs follows one on safety rows."""
        return user_steps + self.alignment_steps * math.ceil(user_steps / self.user_steps)


class SafeGradConfig(Frozen):
    """SafeGrad (arXiv 2508.07172): the customer's gradient loses its part against the safety rows'."""

    name: Literal["safegrad"] = "safegrad"
    safety_batch_size: int | None = Field(
        None, ge=1, le=256, description="Safety rows a step; none: as many as the customer's."
    )


class DpoConfig(Frozen):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290): pairs of answers instead of rows."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(
        0.1,
        gt=0,
        le=2,
        description="How strongly the model is held to the one it started from (paper: 0.1, 0.5 for summaries).",
    )


AlignmentMethod = Annotated[
    SftConfig | VaccineConfig | RepNoiseConfig | BoosterConfig | BoosterVaccineConfig | TiterConfig,
    Field(discriminator="name"),
]
FinetuneMethod = Annotated[SftConfig | LisaConfig | SafeGradConfig, Field(discriminator="name")]
Method = (
    SftConfig
    | VaccineConfig
    | RepNoiseConfig
    | BoosterConfig
    | BoosterVaccineConfig
    | TiterConfig
    | LisaConfig
    | SafeGradConfig
    | DpoConfig
)
