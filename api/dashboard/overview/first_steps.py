"""What to do next on a fresh installation, until the first customer's job is there."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from models.api_key import ApiKey
from models.job import Job, JobKind
from models.model_version import Gate, ModelVersion, VersionKind
from models.scope import Scope


@dataclass(frozen=True, slots=True)
class FirstStep:
    """One thing to do, how, and whether it is done."""

    title: str
    command: str
    is_done: bool


def first_steps(session: Session, *, workers: int) -> tuple[FirstStep, ...]:
    """Give the steps to a first job; none once there was one."""
    if session.scalar(select(exists().where(Job.kind == JobKind.FINETUNE))):
        return ()
    has_base, has_aligned, has_customer = session.execute(
        select(
            exists().where(ModelVersion.kind == VersionKind.BASE),
            exists().where(
                ModelVersion.kind == VersionKind.ALIGNED, ModelVersion.gate == Gate.RELEASED
            ),
            exists().where(ApiKey.scopes == [Scope.CUSTOMER]),
        )
    ).one()
    return (
        FirstStep("Start a worker", "make up", workers > 0),
        FirstStep(
            "Register a base model, with its safety set",
            "titer models add ./my-base --name my-base --safety-set ./safety",
            has_base,
        ),
        FirstStep(
            "Align it; the gate must release what comes of it",
            "titer align --base my-base --method booster --follow",
            has_aligned,
        ),
        FirstStep("Give a customer a key", "titer keys create ci --project acme", has_customer),
        FirstStep(
            "Start the first job on a customer's data",
            "titer jobs create --model MODEL --training-file train.jsonl --follow",
            False,
        ),
    )
