"""/v1/policies: what the gate decides by. Staff read and try; operators make and activate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy.orm import Session

from api.deps import OperatorDep, SessionDep, require_staff
from api.policies import service
from api.policies.schemas import (
    ChangePolicy,
    CreatePolicy,
    DryRun,
    DryRunResult,
    PolicyChange,
    PolicyObject,
)
from api.policies.service import PREFIX
from api.schemas import After, Identifier, Listing, PageLimit
from models.base import unix
from models.policy import SafetyPolicy

router = APIRouter(prefix="/v1/policies", tags=["policies"], dependencies=[Depends(require_staff)])


@router.post("")
def create(body: CreatePolicy, caller: OperatorDep, session: SessionDep) -> PolicyObject:
    """Add a version of the rules, for the service or for one project."""
    return _show(session, [service.create_policy(session, body, by=caller.key)])[0]


@router.get("")
def list_policies(
    session: SessionDep,
    project: Annotated[Identifier | None, Query(description="Only this project's own.")] = None,
    active: Annotated[bool, Query(description="Only those in force.")] = False,
    after: After = None,
    limit: PageLimit = 20,
) -> Listing[PolicyObject]:
    """List every version, newest first."""
    found, has_more = service.list_policies(
        session, project_id=project, after=after, limit=limit, only_active=active
    )
    return Listing(data=_show(session, found), has_more=has_more)


@router.post("/dry_run")
def dry_run(body: DryRun, session: SessionDep) -> DryRunResult:
    """Say what candidate rules would have decided on past evaluations. Nothing is changed."""
    tried = service.try_rules(session, body)
    return DryRunResult(
        data=[
            PolicyChange(
                id=change.evaluation.id,
                model=change.version.id,
                job=change.evaluation.job_id,
                project=change.version.project_id,
                created_at=unix(change.evaluation.created_at),
                policy_version=change.evaluation.policy_version,
                then=change.evaluation.gate or "",
                now=change.now,
                reasons=list(change.reasons),
                gate=change.version.gate,
            )
            for change in tried.page
        ],
        has_more=tried.has_more,
        rules=tried.rules,
        evaluations=tried.evaluations,
        truncated=tried.is_truncated,
        changes=tried.changes,
        counts={then: dict(now) for then, now in tried.counts.items()},
        data_counts={then: dict(now) for then, now in tried.data_counts.items()},
    )


@router.get("/{policy_id}")
def retrieve(policy_id: str, session: SessionDep) -> PolicyObject:
    """Show one version, by its id or its number."""
    return _show(session, [service.get_policy(session, policy_id)])[0]


@router.post("/{policy_id}/activate")
def activate(
    policy_id: str, caller: OperatorDep, session: SessionDep, body: ChangePolicy | None = None
) -> PolicyObject:
    """Put a version in force. Decisions that were made stay; later ones follow it."""
    reason = body.reason if body else None
    return _show(session, [service.activate_policy(session, policy_id, reason, by=caller.key)])[0]


@router.post("/{policy_id}/deactivate")
def deactivate(
    policy_id: str, caller: OperatorDep, session: SessionDep, body: ChangePolicy | None = None
) -> PolicyObject:
    """Take a project's own policy out of force; the service's decides on its models again."""
    reason = body.reason if body else None
    return _show(session, [service.deactivate_policy(session, policy_id, reason, by=caller.key)])[0]


def _show(session: Session, policies: Sequence[SafetyPolicy]) -> list[PolicyObject]:
    in_force = service.versions_in_force(session)
    return [
        PolicyObject(
            id=f"{PREFIX}{policy.version}",
            version=policy.version,
            project=policy.project_id,
            rules=policy.parsed(),
            note=policy.note,
            created_at=unix(policy.created_at),
            created_by=policy.created_by,
            active=policy.version in in_force,
            activated_at=unix(policy.activated_at) if policy.activated_at else None,
        )
        for policy in policies
    ]
