"""What the pages of policies show: the list, one version, and what candidate rules would change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.audit import service as audit_service
from api.audit.service import Wanted
from api.dashboard.measures import Measure, harmful_score
from api.dashboard.policies.flow import Flow, draw_flow
from api.dashboard.policies.rules import Comparison, compare, in_words
from api.policies import service
from api.policies.schemas import DryRun
from api.policies.service import PREFIX, Change, Tried
from models.api_key import ApiKey, Project
from models.audit import AuditEntry
from models.policy import PolicyRules, SafetyPolicy, active_policy, current_policy

Named = TypeVar("Named", Project, ApiKey)

PAGE_SIZE = 30
MAX_IN_FORCE_SHOWN = 200
MAX_ENTRIES_SHOWN = 20
MAX_PROJECTS_OFFERED = 500
CHANGES_SHOWN = 50


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """One version in a list."""

    policy: SafetyPolicy
    #: Whose it is; empty: the service's.
    project_name: str
    author: str
    is_active: bool
    #: The rules in which it differs from the default, in a few words each.
    changes: tuple[Comparison, ...]

    @property
    def id(self) -> str:
        """Its public name."""
        return f"{PREFIX}{self.policy.version}"


@dataclass(frozen=True, slots=True)
class PolicyList:
    """What is in force, and a page of all versions."""

    in_force: tuple[PolicyLine, ...]
    lines: tuple[PolicyLine, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class PolicyPage:
    """One version."""

    line: PolicyLine
    words: dict[str, tuple[str, ...]]
    #: Which rules decide on its models today, if others do.
    present: PolicyLine | None
    comparison: tuple[Comparison, ...]
    history: Sequence[AuditEntry]


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """A model that candidate rules decide otherwise on."""

    change: Change
    project_name: str
    harmful_score: Measure


@dataclass(frozen=True, slots=True)
class Trial:
    """A dry run, drawn."""

    tried: Tried
    flow: Flow
    lines: tuple[ChangeLine, ...]


def list_policies(session: Session, after: str | None) -> PolicyList:
    """Give what is in force, the service's first, and one page of versions, newest first."""
    active, _ = service.list_policies(
        session, project_id=None, after=None, limit=MAX_IN_FORCE_SHOWN, only_active=True
    )
    found, has_more = service.list_policies(session, project_id=None, after=after, limit=PAGE_SIZE)
    shown = _lines(session, [*active, *found])
    by_version = {line.policy.version: line for line in shown}
    in_force = sorted(
        (by_version[policy.version] for policy in active),
        key=lambda line: (line.policy.project_id is not None, line.project_name.lower()),
    )
    lines = tuple(by_version[policy.version] for policy in found)
    return PolicyList(tuple(in_force), lines, lines[-1].id if has_more else None)


def read_policy(session: Session, policy: SafetyPolicy) -> PolicyPage:
    """Gather what is known of a version."""
    current = current_policy(session, policy.project_id)
    present = None if current is policy else _lines(session, [current])[0]
    history, _ = audit_service.list_entries(
        session, Wanted(subject_ids=[f"{PREFIX}{policy.version}"]), limit=MAX_ENTRIES_SHOWN
    )
    return PolicyPage(
        line=_lines(session, [policy])[0],
        words=in_words(policy.parsed()),
        present=present,
        comparison=compare(current.parsed(), policy.parsed()),
        history=history,
    )


def present_rules(session: Session, project_id: str | None) -> tuple[str, PolicyRules]:
    """Give the id and the rules of the policy that decides in a scope today."""
    current = current_policy(session, project_id)
    return f"{PREFIX}{current.version}", current.parsed()


def has_own_policy(session: Session, project_id: str) -> bool:
    """Whether a project's models are decided by a policy of its own."""
    return active_policy(session, project_id) is not None


def offered_projects(session: Session) -> Sequence[Project]:
    """Give the projects that may be given a policy of their own."""
    return session.scalars(
        select(Project)
        .where(Project.archived_at.is_(None))
        .order_by(Project.name, Project.id)
        .limit(MAX_PROJECTS_OFFERED)
    ).all()


def try_rules(
    session: Session, rules: PolicyRules, project_id: str | None, after: str | None
) -> Trial:
    """Try rules on what was measured, in the scope that they are for."""
    # Every rule is given, so that nothing is left to the policy in force.
    candidate = PolicyRules.model_validate(rules.model_dump())
    asked = DryRun(
        rules=candidate,
        project=project_id,
        without_own=project_id is None,
        after=after,
        limit=CHANGES_SHOWN,
    )
    tried = service.try_rules(session, asked)
    names = _names(session, Project, {c.version.project_id for c in tried.page})
    return Trial(
        tried=tried,
        flow=draw_flow(tried.counts),
        lines=tuple(
            ChangeLine(
                change,
                names.get(change.version.project_id or "", ""),
                harmful_score(change.evaluation, tried.rules),
            )
            for change in tried.page
        ),
    )


def _lines(session: Session, policies: Sequence[SafetyPolicy]) -> list[PolicyLine]:
    projects = _names(session, Project, {policy.project_id for policy in policies})
    keys = _names(session, ApiKey, {policy.created_by for policy in policies})
    in_force = service.versions_in_force(session)
    default = PolicyRules()
    return [
        PolicyLine(
            policy,
            projects.get(policy.project_id or "", ""),
            keys.get(policy.created_by or "", ""),
            policy.version in in_force,
            tuple(c for c in compare(default, policy.parsed()) if c.is_changed),
        )
        for policy in policies
    ]


def _names(session: Session, table: type[Named], ids: Collection[str | None]) -> dict[str, str]:
    wanted = {each for each in ids if each is not None}
    if not wanted:
        return {}
    return dict(session.execute(select(table.id, table.name).where(table.id.in_(wanted))).all())
