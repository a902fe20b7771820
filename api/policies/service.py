"""Making, choosing and trying policies. What they decide is `models.policy`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import InstrumentedAttribute, Session, defer, load_only

from api.keys.service import ProjectNotFound
from api.locks import lock_name
from api.policies.schemas import CreatePolicy, DryRun
from models.api_key import ApiKey, Project
from models.audit import record
from models.audit_chain import hash_content
from models.base import utc_now
from models.data_risk import Screening, count_flagged, decide_on_rows
from models.errors import Conflict, DomainError, NotFound
from models.evaluation import Evaluation
from models.job import Job
from models.model_version import ModelVersion
from models.policy import PolicyRules, SafetyPolicy, active_policy, current_policy, decide
from models.rate import Rate

PREFIX = "policy-"
#: Newest evaluations that a dry run decides on.
MAX_EVALUATIONS = 5_000
#: Newest screenings that it decides on.
MAX_SCREENINGS = 5_000


class PolicyNotFound(NotFound):
    """No such policy."""

    code = "policy_not_found"


class PolicyNotActive(Conflict):
    """The policy is not in force."""

    code = "policy_not_active"


class ServiceNeedsPolicy(Conflict):
    """The service's policy can only be replaced. Activate another version of it."""

    code = "service_needs_policy"


def create_policy(session: Session, asked: CreatePolicy, *, by: ApiKey) -> SafetyPolicy:
    """Add a version; earlier ones stay as they are.

    Raises:
        ProjectNotFound: there is no such project.
    """
    _check_project(session, asked.project)
    # One at a time: each takes the next number.
    lock_name(session, "policies")
    rules = _completed(asked.rules, current_policy(session, asked.project).parsed())
    newest = session.scalar(select(func.max(SafetyPolicy.version))) or 0
    policy = SafetyPolicy(
        version=newest + 1,
        rules=rules.model_dump(mode="json"),
        project_id=asked.project,
        note=asked.note,
        created_by=by.id,
    )
    session.add(policy)
    session.flush()
    # A None from the start would be taken for "not given", and given the default.
    policy.activated_at = None
    session.flush()
    _record(session, by, "policy.created", policy, asked.note or None)
    if asked.activate:
        _put_in_force(session, policy, asked.note or None, by=by)
    return policy


def list_policies(
    session: Session,
    *,
    project_id: str | None,
    after: str | None,
    limit: int,
    only_active: bool = False,
) -> tuple[Sequence[SafetyPolicy], bool]:
    """Give one page of versions, newest first, and whether more follow; of one project if one is named."""
    # The first look at an empty service shows what it decides by.
    current_policy(session)
    query = select(SafetyPolicy)
    if project_id is not None:
        query = query.where(SafetyPolicy.project_id == project_id)
    if only_active:
        query = query.where(SafetyPolicy.version.in_(_versions_in_force()))
    if after is not None:
        query = query.where(SafetyPolicy.version < get_policy(session, after).version)
    found = session.scalars(query.order_by(SafetyPolicy.version.desc()).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def get_policy(session: Session, policy_id: str) -> SafetyPolicy:
    """Give a version by its id (`policy-3`) or its number.

    Raises:
        PolicyNotFound: there is none.
    """
    number = policy_id.removeprefix(PREFIX)
    known = number.isascii() and number.isdigit() and len(number) < 10
    policy = session.get(SafetyPolicy, int(number)) if known else None
    if policy is None:
        raise PolicyNotFound(f"No policy {policy_id[:64]!r}.", param="policy_id")
    return policy


def versions_in_force(session: Session) -> frozenset[int]:
    """Give the version in force of the service and of each project that has one."""
    return frozenset(session.scalars(_versions_in_force()))


def activate_policy(
    session: Session, policy_id: str, reason: str | None, *, by: ApiKey
) -> SafetyPolicy:
    """Put a version in force in its scope, in place of the one that is; decisions already made stay.

    Raises:
        PolicyNotFound: there is none.
    """
    lock_name(session, "policies")
    policy = get_policy(session, policy_id)
    session.refresh(policy)
    if active_policy(session, policy.project_id) is not policy:
        _put_in_force(session, policy, reason, by=by)
    return policy


def deactivate_policy(
    session: Session, policy_id: str, reason: str | None, *, by: ApiKey
) -> SafetyPolicy:
    """Take a project's own policy out of force, so that the service's decides on its models again.

    Raises:
        PolicyNotFound: there is none.
        ServiceNeedsPolicy: it is the service's.
        PolicyNotActive: it is not in force.
    """
    lock_name(session, "policies")
    policy = get_policy(session, policy_id)
    session.refresh(policy)
    if policy.project_id is None:
        raise ServiceNeedsPolicy(param="policy_id")
    if active_policy(session, policy.project_id) is not policy:
        raise PolicyNotActive(param="policy_id")
    _put_out_of_force(session, policy.project_id)
    session.refresh(policy)
    _record(session, by, "policy.deactivated", policy, reason)
    return policy


@dataclass(frozen=True, slots=True)
class Change:
    """An evaluation that candidate rules decide otherwise."""

    evaluation: Evaluation
    version: ModelVersion
    now: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tried:
    """What candidate rules decide on past evaluations, with one page of the changes."""

    rules: PolicyRules
    evaluations: int
    is_truncated: bool
    counts: dict[str, Counter[str]]
    changes: int
    page: list[Change]
    has_more: bool
    #: Of training files, what was made of each then, and what would be now.
    data_counts: dict[str, Counter[str]]


def try_rules(session: Session, asked: DryRun) -> Tried:
    """Decide anew on what was measured, and write nothing down.

    Raises:
        ProjectNotFound: there is no such project.
        PolicyNotFound: there is no such policy to start from.
    """
    _check_project(session, asked.project)
    start = (
        current_policy(session, asked.project)
        if asked.policy is None
        else get_policy(session, asked.policy)
    )
    rules = _completed(asked.rules, start.parsed())
    query = (
        select(Evaluation, ModelVersion)
        .join(ModelVersion, ModelVersion.id == Evaluation.version_id)
        # Recipes and hashes of thousands of models take longer to read than to decide on them.
        .options(
            load_only(
                ModelVersion.kind, ModelVersion.gate, ModelVersion.project_id, raiseload=True
            ),
            defer(Evaluation.reasons, raiseload=True),
        )
        .where(
            Evaluation.gate.is_not(None),
            *_wanted(asked, ModelVersion.project_id, Evaluation.created_at),
        )
        .order_by(Evaluation.created_at.desc(), Evaluation.id.desc())
        .limit(MAX_EVALUATIONS + 1)
    )
    counts: dict[str, Counter[str]] = {}
    changes: list[Change] = []
    found = session.execute(query).all()
    for evaluation, version in found[:MAX_EVALUATIONS]:
        verdict = decide(evaluation.parsed(), rules, evaluation.tenant_risk)
        then = evaluation.gate or ""
        counts.setdefault(then, Counter())[verdict.gate] += 1
        if verdict.gate != then:
            changes.append(Change(evaluation, version, verdict.gate, verdict.reasons))
    start_at = _after(changes, asked.after)
    end = start_at + asked.limit
    return Tried(
        rules=rules,
        evaluations=min(len(found), MAX_EVALUATIONS),
        is_truncated=len(found) > MAX_EVALUATIONS,
        counts=counts,
        changes=len(changes),
        page=changes[start_at:end],
        has_more=len(changes) > end,
        data_counts=_try_on_rows(session, asked, rules),
    )


def _try_on_rows(session: Session, asked: DryRun, rules: PolicyRules) -> dict[str, Counter[str]]:
    query = (
        select(Screening)
        .join(Job, Job.id == Screening.job_id)
        .where(
            Screening.finished_at.is_not(None),
            *_wanted(asked, Job.project_id, Screening.finished_at),
        )
        .order_by(Screening.finished_at.desc(), Screening.job_id)
        .limit(MAX_SCREENINGS)
    )
    risks = {screening.job_id: screening.parsed() for screening in session.scalars(query)}
    flagged = count_flagged(session, risks.keys(), row_threshold=rules.row_threshold)
    counts: dict[str, Counter[str]] = {}
    for job_id, risk in risks.items():
        if risk is None:
            continue
        share = Rate(count=flagged.get(job_id, 0), n=risk.harmful_share.n)
        now = decide_on_rows(share, rules.data_action, rules.max_harmful_share)
        counts.setdefault(risk.outcome, Counter())[now] += 1
    return counts


def _wanted(
    asked: DryRun,
    project_id: InstrumentedAttribute[str] | InstrumentedAttribute[str | None],
    moment: InstrumentedAttribute[datetime] | InstrumentedAttribute[datetime | None],
) -> Iterator[ColumnElement[bool]]:
    """Give the conditions that select what is to be decided on anew."""
    if asked.project is not None:
        yield project_id == asked.project
    if asked.without_own:
        own = select(SafetyPolicy.project_id).where(
            SafetyPolicy.project_id.is_not(None), SafetyPolicy.activated_at.is_not(None)
        )
        yield or_(project_id.is_(None), project_id.not_in(own))
    if asked.since is not None:
        yield moment >= datetime.fromtimestamp(asked.since, UTC)


def _after(changes: Sequence[Change], after: str | None) -> int:
    if after is None:
        return 0
    for number, change in enumerate(changes, start=1):
        if change.evaluation.id == after:
            return number
    raise DomainError("There is no such change under these rules.", param="after")


def _completed(given: PolicyRules, known: PolicyRules) -> PolicyRules:
    """Take what was given, and the rest from what is known."""
    return known.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})


def _versions_in_force() -> Select[int]:
    return (
        select(SafetyPolicy.version)
        .where(SafetyPolicy.activated_at.is_not(None))
        .ext(distinct_on(SafetyPolicy.project_id))
        .order_by(
            SafetyPolicy.project_id, SafetyPolicy.activated_at.desc(), SafetyPolicy.version.desc()
        )
    )


def _check_project(session: Session, project_id: str | None) -> None:
    if project_id is not None and session.get(Project, project_id) is None:
        raise ProjectNotFound(f"No project {project_id[:64]!r}.", param="project")


def _put_in_force(
    session: Session, policy: SafetyPolicy, reason: str | None, *, by: ApiKey
) -> None:
    before = active_policy(session, policy.project_id)
    _put_out_of_force(session, policy.project_id)
    session.refresh(policy)
    policy.activated_at = utc_now()
    session.flush()
    _record(
        session, by, "policy.activated", policy, reason, replaced=before.version if before else None
    )


def _put_out_of_force(session: Session, project_id: str | None) -> None:
    session.execute(
        update(SafetyPolicy)
        .where(SafetyPolicy.project_id.is_not_distinct_from(project_id))
        .values(activated_at=None)
        .execution_options(synchronize_session=False)
    )


def _record(
    session: Session,
    by: ApiKey,
    action: str,
    policy: SafetyPolicy,
    reason: str | None,
    **facts: object,
) -> None:
    record(
        session,
        actor=by,
        action=action,
        subject=("policy", f"{PREFIX}{policy.version}"),
        project_id=policy.project_id,
        reason=reason,
        # The rules may be long; by their hash the entry proves them all the same.
        details={"rules_sha256": hash_content(policy.rules), **facts},
    )
