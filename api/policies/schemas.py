"""Policies as operators send them and staff see them."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from api.schemas import Identifier, Schema
from models.policy import PolicyRules

MAX_NOTE = 1_000


class CreatePolicy(Schema):
    """A new version. Rules that are left out stay as they are in the policy now in force."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "rules": {"max_harmful_score": 10, "release_approvals": 2},
                    "note": "after the audit of May",
                },
                {
                    "rules": {"data_action": "drop", "max_harmful_share": 1},
                    "project": "proj-abc",
                    "activate": True,
                },
            ]
        }
    )

    rules: PolicyRules
    project: Identifier | None = Field(
        None, description="Id of the project whose own policy it is; by default the service's."
    )
    note: str = Field("", max_length=MAX_NOTE, description="Why; kept with the version.")
    activate: bool = Field(False, description="Put it in force at once.")


class ChangePolicy(Schema):
    """Why a policy is put in force, or out of it."""

    reason: str | None = Field(None, min_length=1, max_length=MAX_NOTE)


class PolicyObject(Schema):
    """One version of the rules."""

    id: str
    object: Literal["safety_policy"] = "safety_policy"
    version: int
    project: str | None = Field(description="Null: the service's policy.")
    rules: PolicyRules
    note: str
    created_at: int
    created_by: str | None = Field(description="Id of the key that made it.")
    active: bool = Field(description="Whether it is the one in force for its project or service.")
    activated_at: int | None


class DryRun(Schema):
    """Which rules to try, on which evaluations and screenings. Rules that are left out stay as they are in force."""

    rules: PolicyRules = Field(default_factory=PolicyRules)
    policy: Identifier | None = Field(
        None, description="Start from this stored policy instead of the one in force."
    )
    project: Identifier | None = Field(None, description="Only this project's models.")
    without_own: bool = Field(
        False,
        description="Leave out the models of projects whose own policy is in force: what the service's would not reach.",
    )
    since: int | None = Field(None, ge=0, le=253_402_300_799, description="Unix seconds.")
    after: Identifier | None = Field(
        None, description="Id of the last change of the page before this one."
    )
    limit: int = Field(100, ge=1, le=1_000, description="Changes on one page.")


class PolicyChange(Schema):
    """An evaluation on which the candidate rules decide otherwise than was decided."""

    id: str = Field(description="The evaluation's.")
    object: Literal["policy_change"] = "policy_change"
    model: str
    job: str | None
    project: str | None
    created_at: int
    policy_version: int | None = Field(description="Of the policy that decided.")
    then: str
    now: str
    reasons: list[str] = Field(description="Of the candidate rules' decision.")
    gate: str = Field(description="The model's gate today; a person may have decided since.")


class DryRunResult(Schema):
    """What candidate rules would have decided. Nothing is changed by it."""

    object: Literal["list"] = "list"
    data: list[PolicyChange]
    has_more: bool
    rules: PolicyRules = Field(description="The candidate, complete.")
    evaluations: int = Field(description="How many were decided on anew, the newest first.")
    truncated: bool = Field(description="Whether there are older ones that were left out.")
    changes: int
    counts: dict[str, dict[str, int]] = Field(
        description='By what was decided then and what would be now: {"released": {"held": 2, ...}, ...}.'
    )
    data_counts: dict[str, dict[str, int]] = Field(
        description="The same of training files that judges have read: `allowed`, `dropped`, `held`, `rejected`."
    )
