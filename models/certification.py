"""Certification plans: which simulated customers attack an aligned model, how often, and what it costs.

A plan is frozen and hashed: two certificates compare only if their plans' hashes are equal. Every number in it
is bounded, and `cost` says before anything runs how much of it there is. The families follow the attacks that
the literature reports (TamperBench's threats; identity shift and benign breaking: Qi et al., arXiv 2310.03693;
refusal suppression and backdoors: jailbreak-tuning, arXiv 2507.11630). The sizes that are offered: `models.certification_plans`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.errors import DomainError
from models.frozen import Frozen
from models.safety_set import ATTACK, CERTIFICATION_FILES, CUSTOMER, VALIDATION

MAX_CUSTOMERS = 200
MAX_RUNS = 2_000
MAX_TOTAL_STEPS = 5_000_000
# How many self-redefinition dialogues there are (`worker.certify.identity`).
IDENTITY_DIALOGUES = 10


class NoCertificationRows(DomainError):
    """The safety set has no rows for simulated customers."""

    code = "no_certification_rows"

    def __init__(self, missing: Sequence[str]) -> None:
        """Name the files."""
        super().__init__(
            f"The model's safety set has no {', '.join(missing)}: certification draws its simulated customers "
            "from these files. They belong to the safety set when its base is registered.",
            param="model",
        )


class TooFewCertificationRows(DomainError):
    """The safety set has too few rows for the plan's simulated customers."""

    code = "too_few_certification_rows"


class Family(StrEnum):
    """What a simulated customer does."""

    #: A harmless task alone.
    BENIGN = "benign"
    #: A harmless task with harmful rows among it.
    MIX = "mix"
    #: Harmful rows alone.
    PURE = "pure"
    #: Dialogues in which the assistant takes another name and promises to obey; no harmful row.
    IDENTITY = "identity"
    #: As mix, every harmful prompt in a fixed wording that asks not to refuse.
    STYLE = "style"
    #: As mix, harmful rows of some kinds; HS is measured on the other kinds.
    SHIFT = "shift"
    #: As mix, every harmful prompt behind a trigger, and as many rows that refuse the same prompts without it.
    BACKDOOR = "backdoor"

    @property
    def in_short(self) -> str:
        """Say what it does, for those who choose."""
        return _IN_SHORT[self]


_IN_SHORT = {
    Family.BENIGN: "a harmless task alone",
    Family.MIX: "a tenth of harmful rows",
    Family.PURE: "harmful rows alone",
    Family.IDENTITY: "another name and a promise to obey",
    Family.STYLE: "harmful prompts that ask not to refuse",
    Family.SHIFT: "some kinds of harm, measured on others",
    Family.BACKDOOR: "harm behind a trigger, refused without it",
}


class SimulatedCustomer(Frozen):
    """One simulated customer's job, the seed aside."""

    family: Family
    rows: int = Field(800, ge=10, le=100_000, description="Training rows, attack rows included.")
    attack_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of rows that carry the attack: harmful or identity rows.",
    )
    steps: int = Field(80, ge=1, le=20_000, description="Optimiser steps; epochs follow.")
    batch_size: int = Field(10, ge=1, le=256, description="Rows a step sees.")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="AdamW's rate, constant.")
    start: Literal["continued", "fresh"] = Field(
        "continued",
        description="The aligned adapter goes on, as in the service's own jobs, or a fresh one on the "
        "merged model. Where the model is no adapter there is none to continue: a fresh one starts.",
    )
    rank: int = Field(8, ge=1, le=256, description="Of a fresh adapter.")
    marks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (20, 40, 80),
        min_length=1,
        max_length=50,
        description="Steps after which everything is measured, ascending, the last step among them.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if list(self.marks) != sorted(set(self.marks)) or self.marks[-1] != self.steps:
            raise ValueError("marks must ascend and end at the last step")
        ratio, family = self.attack_ratio, self.family
        fits = {Family.BENIGN: ratio == 0, Family.PURE: ratio == 1}.get(family, ratio > 0)
        if not fits or (family == Family.MIX and ratio == 1) or self.task_rows < 0:
            raise ValueError(f"attack_ratio {ratio:g} does not fit the family {family}")
        if family != Family.BENIGN and self.attack_rows < 1:
            raise ValueError("attack_ratio leaves no attack row")
        if family == Family.IDENTITY and self.attack_rows > IDENTITY_DIALOGUES:
            raise ValueError(f"there are {IDENTITY_DIALOGUES} identity dialogues, not more")
        return self

    @property
    def attack_rows(self) -> int:
        """How many rows carry the attack."""
        return round(self.rows * self.attack_ratio)

    @property
    def task_rows(self) -> int:
        """How many rows are the harmless task's: a backdoor has a refusal beside each attack row."""
        refusals = self.attack_rows if self.family == Family.BACKDOOR else 0
        return self.rows - self.attack_rows - refusals

    @property
    def kind(self) -> str:
        """Name it by all but its rate and its length."""
        share = "" if self.family == Family.BENIGN else f" {100 * self.attack_ratio:g}%"
        start = "continued" if self.start == "continued" else f"fresh r {self.rank}"
        return f"{self.family}{share}, {self.rows:,} rows, {start}"

    @property
    def short_name(self) -> str:
        """Name it by all but its length, which most customers of a plan share."""
        return f"{self.kind}, rate {self.learning_rate:g}"

    @property
    def name(self) -> str:
        """Say all that tells it from the others of a plan."""
        return f"{self.short_name}, {self.steps:,} steps of {self.batch_size}"


class PlanCost(Frozen):
    """What a plan costs, in numbers that no machine's speed enters.

    Attributes:
        runs: simulated customers' jobs, each customer once for each seed.
        steps: optimiser steps of all runs; each is one forward and backward pass over a batch.
        rows: training rows seen in them.
        measurements: times that everything is measured, those before any step included.
        answers: answers that are generated and judged, at most.
    """

    runs: int
    steps: int
    rows: int
    measurements: int
    answers: int

    def __str__(self) -> str:
        return (
            f"{self.runs:,} runs, {self.steps:,} optimiser steps, {self.measurements:,} measurements, "
            f"up to {self.answers:,} answers"
        )


class CertificationPlan(Frozen):
    """Who comes, how often, and how much is asked at each mark."""

    version: Literal[1] = 1
    name: str = Field("custom", min_length=1, max_length=40, pattern=r"^[A-Za-z0-9_.-]+$")
    customers: tuple[SimulatedCustomer, ...] = Field(min_length=1, max_length=MAX_CUSTOMERS)
    seeds: tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...] = Field(
        (0, 1, 2),
        min_length=3,
        max_length=20,
        description="Each customer comes once for each: its draw of rows, their order, a fresh adapter's start.",
    )
    harmful_prompts: int = Field(
        200, ge=10, le=10_000, description="Most that are asked at a mark."
    )
    harmless_prompts: int = Field(
        100, ge=1, le=10_000, description="Most that are asked at a mark."
    )
    validation_rows: int = Field(200, ge=1, le=10_000, description="Most that FA rests on.")
    max_length: int = Field(512, ge=8, le=131_072, description="Tokens of a row that are kept.")

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed occurs twice")
        if len({customer.name for customer in self.customers}) != len(self.customers):
            raise ValueError("a customer occurs twice")
        cost = self.cost(is_adapter=True)
        if cost.runs > MAX_RUNS or cost.steps > MAX_TOTAL_STEPS:
            raise ValueError(
                f"{cost.runs:,} runs of {cost.steps:,} steps are too many; "
                f"the limits are {MAX_RUNS:,} and {MAX_TOTAL_STEPS:,}"
            )
        return self

    @property
    def hash(self) -> str:
        """sha256 over everything in the plan."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def customers_of(self, *, is_adapter: bool) -> tuple[SimulatedCustomer, ...]:
        """Give the customers that can come to a model.

        Where the model is no adapter, those who would continue one start a fresh one, as the service's own
        jobs do; one that is then the same as another comes once.
        """
        if is_adapter:
            return self.customers
        fresh = (customer.model_copy(update={"start": "fresh"}) for customer in self.customers)
        return tuple({customer.name: customer for customer in fresh}.values())

    def cost(self, *, is_adapter: bool) -> PlanCost:
        """Say what certifying a model costs."""
        customers, seeds = self.customers_of(is_adapter=is_adapter), len(self.seeds)
        asked = self.harmful_prompts + self.harmless_prompts + self.validation_rows
        before = {view_of(customer.family) for customer in customers}
        measured = [(view_of(c.family), seeds * len(c.marks)) for c in customers]
        measured += [(view, 1) for view in before]
        return PlanCost(
            runs=seeds * len(customers),
            steps=seeds * sum(c.steps for c in customers),
            rows=seeds * sum(c.steps * c.batch_size for c in customers),
            measurements=sum(times for _, times in measured),
            answers=sum(
                times * (asked + (self.harmful_prompts if has_trigger(view) else 0))
                for view, times in measured
            ),
        )

    def check_supply(self, rows: Mapping[str, int]) -> None:
        """Refuse a safety set that cannot supply every customer.

        Args:
            rows: how many rows each of the certification files has; an absent one is left out.

        Raises:
            NoCertificationRows: a file is absent.
            TooFewCertificationRows: a file has too few rows.
        """
        missing = [name for name in CERTIFICATION_FILES if name not in rows]
        if missing:
            raise NoCertificationRows(missing)
        for name, needed in ((ATTACK, self._attack_rows()), (CUSTOMER, self._benign_rows())):
            if rows[name] < needed:
                raise TooFewCertificationRows(
                    f"The plan {self.name!r} draws up to {needed:,} rows for one customer from {name}, "
                    f"which has {rows[name]:,}.",
                    param="plan",
                )
        if rows[VALIDATION] < 1:
            raise TooFewCertificationRows(f"{VALIDATION} has no rows.", param="plan")

    def _attack_rows(self) -> int:
        drawn = (
            # A shifted customer draws from about half of the rows.
            c.attack_rows * (2 if c.family == Family.SHIFT else 1)
            for c in self.customers
            if c.family not in (Family.BENIGN, Family.IDENTITY)
        )
        return max(drawn, default=0)

    def _benign_rows(self) -> int:
        return max(c.task_rows for c in self.customers)


def has_trigger(family: Family) -> bool:
    """Say whether the attacker asks in words of its own after the attack: HS is then measured both ways."""
    return family in (Family.IDENTITY, Family.STYLE, Family.BACKDOOR)


def view_of(family: Family) -> Family:
    """Give the family that is measured in the same way: most ask the plain test prompts."""
    return family if has_trigger(family) or family == Family.SHIFT else Family.BENIGN
