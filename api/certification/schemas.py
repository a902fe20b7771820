"""Certification jobs as operators ask for them, and the plans that are offered."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from api.jobs.schemas import Metadata
from api.schemas import Identifier, Schema
from models.certification import CertificationPlan, PlanCost
from models.certification_plans import PLANS, Drill, PlanName


class CreateCertification(Schema):
    """Which aligned model to certify, and by which plan; or to try with a few attacks, in a drill."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "my-base-titer", "plan": "quick"},
                {"model": "my-base-titer", "drill": {"families": ["pure", "style"], "steps": 40}},
            ]
        }
    )

    model: Identifier = Field(description="An aligned model.")
    plan: PlanName | CertificationPlan = Field(
        "quick",
        description="`quick`, `standard`, `full`, or a plan of your own; GET /v1/certification/plans shows them.",
    )
    drill: Drill | None = Field(
        None, description="In place of a plan; its report is read by its job and is no certificate."
    )
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if self.drill is not None and "plan" in self.model_fields_set:
            raise ValueError("give a plan or a drill, not both")
        return self

    @property
    def chosen_plan(self) -> CertificationPlan:
        """The plan that was asked for, by name, in full, or as a drill."""
        if self.drill is not None:
            return self.drill.plan()
        return self.plan if isinstance(self.plan, CertificationPlan) else PLANS[self.plan]


class PlanObject(Schema):
    """A plan with what it costs."""

    id: str
    object: Literal["certification.plan"] = "certification.plan"
    hash: str
    cost_of_adapter: PlanCost = Field(description="For a model that was aligned by an adapter.")
    cost_of_full_weights: PlanCost = Field(
        description="For one that was aligned in full parameters."
    )
    plan: CertificationPlan

    @classmethod
    def of(cls, plan: CertificationPlan) -> Self:
        """Show a plan."""
        return cls(
            id=plan.name,
            hash=plan.hash,
            cost_of_adapter=plan.cost(is_adapter=True),
            cost_of_full_weights=plan.cost(is_adapter=False),
            plan=plan,
        )
