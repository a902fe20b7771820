"""The review queue as staff see it, and appeals as customers send them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from api.schemas import JsonObject, Schema
from models.review import MAX_APPEAL, MAX_REASON

Reason = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_REASON)
]


class Decide(Schema):
    """Why data or a model is released or rejected, or a model evaluated again."""

    reason: Reason = Field(description="Kept in the job's log and in the audit log.")


class ReviewProject(Schema):
    """The tenant whose data or model it is."""

    id: str
    name: str


class Approval(Schema):
    """A reviewer's word for a release that needs another's too."""

    key_id: str
    reason: str
    created_at: int


class AppealText(Schema):
    """What the customer says against the block."""

    text: str
    created_at: int
    outcome: str | None = Field(
        description="`released`, `rejected`, `expired` or `withdrawn`; null while it is open."
    )


class ReviewObject(Schema):
    """A held model, or training data before there is one, with what there is to decide on. Its id is the job's."""

    id: str
    object: Literal["review"] = "review"
    status: str = Field(
        description="`waiting` for a decision, `evaluating` again, or how it ended: of a model `released`, `blocked` "
        "or `pending`, of data `released`, `rejected`, `expired` or `withdrawn`."
    )
    cause: Literal["data", "gate", "appeal"] = Field(
        description="Why a person is asked; `data` until the job has made its model."
    )
    job: str
    job_status: str
    kind: str
    model: str = Field(description="The model's name, which it has before it is made.")
    project: ReviewProject
    created_at: int = Field(description="Since when it waits.")
    expires_at: int | None = Field(
        description="When it is blocked, or the data rejected, if nobody decides."
    )
    reasons: list[str]
    policy_version: int | None = Field(description="Of the policy that decided on the evidence.")
    approvals: list[Approval]
    approvals_needed: int
    appeal: AppealText | None
    safety: JsonObject | None = Field(description="Null while the model is not made.")
    data_risk: JsonObject | None = Field(
        description="What the judges found in the training file; null if they did not read it."
    )
    risk: JsonObject | None = Field(
        description="The project's cumulative risk; null for the provider's own models."
    )


class RiskObject(Schema):
    """What a project's jobs of the window add up to: risk = 10 · attempts + excess + drift."""

    object: Literal["project.risk"] = "project.risk"
    project: ReviewProject
    score: float
    window_days: int
    models: int = Field(description="Models that the gate decided on in the window.")
    attempts: int = Field(description="Of these, held, blocked, or near the limit.")
    excess_points: float = Field(description="HS of these above their aligned models, summed.")
    drift_points: float = Field(description="The most that any model is above its aligned one.")
    furthest_model: str | None
    limit: float | None = Field(description="The policy's `max_tenant_risk`.")


class CreateAppeal(Schema):
    """A customer's objection; a person reads it."""

    text: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_APPEAL)
    ]


class AppealObject(Schema):
    """An appeal as its customer sees it."""

    object: Literal["fine_tuning.job.appeal"] = "fine_tuning.job.appeal"
    job: str
    model: str
    text: str
    created_at: int
    status: str = Field(
        description="`open`, or how it ended: `released`, `rejected`, `expired`, `withdrawn`."
    )
    closed_at: int | None
