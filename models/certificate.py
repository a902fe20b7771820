"""Certificates: what simulated customers did to one aligned model, run by run and summed up.

A certificate is evidence, never a verdict: it changes no gate. Its schema is versioned (`schema_`), and it
holds every count that its own numbers are made of, so that anybody can work them out again. Where it is
kept: `models.stored_certificate`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from models.certification import CertificationPlan, Family, SimulatedCustomer
from models.evaluation import JudgeIdentity
from models.frozen import Frozen


class Point(Frozen):
    """What a model was after one step: counts of prompts and of rows, and mean token losses on harmful rows.

    `canary_loss` is on held-out harmful rows that no training saw, `attack_loss` on the customer's own rows
    that carry the attack. `triggered` counts harmful answers to the same prompts asked in the attack's own words,
    for attacks that have such words. A loss that is no number any more is absent.
    """

    step: int = Field(ge=0)
    harmful: int = Field(ge=0)
    harmful_or_incoherent: int = Field(ge=0)
    refused: int = Field(ge=0)
    prompts: int = Field(ge=0)
    over_refused: int = Field(ge=0)
    helped: int = Field(ge=0)
    harmless_prompts: int = Field(ge=0)
    correct: int = Field(ge=0)
    task_rows: int = Field(ge=0)
    canary_loss: float | None = None
    attack_loss: float | None = None
    triggered: int | None = None

    @property
    def escaped(self) -> int:
        """Harmful answers in whichever way of asking gives more: the attacker chooses it."""
        return max(self.harmful, self.triggered or 0)


class CertificationRun(Frozen):
    """One simulated customer's job with one seed, measured at its marks."""

    customer: SimulatedCustomer
    seed: int
    points: tuple[Point, ...]
    steps: int = Field(description="Optimiser steps that were made.")
    trained_tokens: int
    is_diverged: bool = Field(
        False, description="The loss ceased to be a number: the run ended there, with fewer points."
    )
    seconds: float = Field(description="Training and measuring together.")


class Estimate(Frozen):
    """A mean share over seeds in percent, and its 95% interval: the wider of Student's t and Wilson's."""

    percent: float
    low: float
    high: float
    seeds: int
    n: int = Field(description="Answers behind it, all seeds together.")


class Mark(Frozen):
    """What a customer's models were after one step, over its seeds; step 0 is the certified model."""

    step: int
    harmful_score: Estimate = Field(
        description="HS in whichever way of asking gives more; see `plain`."
    )
    plain: Estimate = Field(description="HS on the test prompts as they are: what the gate sees.")
    harmful_or_incoherent: Estimate
    over_refusal: Estimate
    fine_tuning_accuracy: Estimate
    canary_loss: float | None


class Escape(Frozen):
    """When HS first exceeded the limit: after more than `after` steps and at most `by`."""

    after: int | None = Field(description="The last mark that was within; none: never within.")
    by: int


class CustomerResult(Frozen):
    """One simulated customer over its seeds."""

    name: str
    customer: SimulatedCustomer
    marks: tuple[Mark, ...]
    escape: Escape | None = Field(description="By the mean over seeds; none: within at every mark.")
    first_seed_escape: Escape | None = Field(description="The same by the first seed that exceeds.")
    diverged: int = Field(description="Runs that ended because their loss ceased to be a number.")

    @property
    def last(self) -> Mark:
        """The last mark."""
        return self.marks[-1]

    @property
    def worst(self) -> Mark:
        """The mark with the highest HS; of equal ones the earliest."""
        return max(self.marks, key=lambda mark: (mark.harmful_score.percent, -mark.step))


class WorstCase(Frozen):
    """The highest HS of all customers and marks. A maximum of many is biased upwards; the interval is its cell's."""

    customer: str
    step: int
    harmful_score: Estimate


class Titer(Frozen):
    """The fewest customer steps to a harmful score above the limit; no steps: it was never exceeded."""

    steps: int | None
    after: int | None
    customer: str | None
    limit_percent: float
    measured_to: int = Field(description="The longest simulated job, in steps.")

    def __str__(self) -> str:
        if self.steps is None:
            return f"not exceeded in {self.measured_to:,} steps"
        return f"{self.steps:,} steps" if self.steps else "0 steps"


class RatePoint(Frozen):
    """HS at one learning rate."""

    learning_rate: float
    harmful_score: Estimate


class RateCurve(Frozen):
    """HS after the last step against the learning rate, of customers that differ in nothing else."""

    name: str
    step: int
    points: tuple[RatePoint, ...]


class Cost(Frozen):
    """What the certification cost: passes and tokens do not depend on the machine, seconds do."""

    runs: int
    passes: int = Field(description="Forward and backward passes over one batch.")
    trained_tokens: int
    answers: int
    seconds: float = Field(description="Of the runs, training and measuring together.")


class CertifiedModel(Frozen):
    """Which model, and what it was made from."""

    id: str
    root: str
    method: str | None
    is_adapter: bool
    recipe: dict[str, Any]
    data_hashes: dict[str, str]


class Instruments(Frozen):
    """What was measured with."""

    judge: JudgeIdentity
    safety_set: str
    safety_set_hash: str
    prompt_set_hash: str = Field(description="Of the prompts that were asked.")
    template_hash: str
    harmful_prompts: int
    harmless_prompts: int
    validation_rows: int
    has_categories: bool = Field(description="Whether the attack rows name kinds of harm.")
    policy_version: int
    versions: dict[str, str] = Field(description="Of Titer and of the libraries that computed it.")


class CertificateSummary(Frozen):
    """What stands beside the model: the numbers without the runs."""

    plan: str
    plan_hash: str
    before: Estimate = Field(description="HS of the certified model, before any customer.")
    worst_case: WorstCase
    titer: Titer
    runs: int


class Certificate(Frozen):
    """The whole report."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["titer.certificate/1"] = Field("titer.certificate/1", alias="schema")
    job: str
    created_at: datetime
    model: CertifiedModel
    plan: CertificationPlan
    plan_hash: str
    instruments: Instruments
    claims: tuple[str, ...] = Field(description="What was measured, in sentences.")
    caveats: tuple[str, ...] = Field(description="What this does not say.")
    summary: CertificateSummary
    customers: tuple[CustomerResult, ...]
    rate_curves: tuple[RateCurve, ...]
    cost: Cost
    before: dict[Family, Point] = Field(description="The model itself, by the way of measuring.")
    runs: tuple[CertificationRun, ...]
