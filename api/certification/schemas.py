"""Certification jobs as operators ask for them, and the plans that are offered."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from api.jobs.schemas import Metadata
from api.schemas import Identifier, Schema
from models.certification import CertificationPlan, PlanCost
from models.certification_plans import PlanName


class CreateCertification(Schema):
    """Which aligned model to certify, and by which plan."""

    model: Identifier = Field(description="An aligned model.")
    plan: PlanName | CertificationPlan = Field(
        "quick",
        description="`quick`, `standard`, `full`, or a plan of your own; GET /v1/certification/plans shows them.",
    )
    metadata: Metadata | None = None


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
