"""All tenants, a page at a time, with what they use and what they may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.organization import service
from api.organization.quotas import MEASURES, WORDS, limits_of
from models.policy import current_policies
from models.project import Project, Quotas
from models.project_use import ProjectUse
from models.risk import last_risks

PAGE_SIZE = 25
#: From this share of a limit on, it is nearly used up.
NEAR_PERCENT = 80.0


@dataclass(frozen=True, slots=True)
class Use:
    """How much of one limit is used; `limit` 0: there is none."""

    quota: str
    used: int
    limit: int
    is_default: bool

    @property
    def label(self) -> str:
        """What is counted."""
        return WORDS[self.quota]

    @property
    def percent(self) -> float | None:
        """The used share; None without a limit."""
        return 100.0 * self.used / self.limit if self.limit else None

    @property
    def standing(self) -> str:
        """`within`, `near` or `full`; empty without a limit."""
        if self.percent is None:
            return ""
        if self.percent >= 100:
            return "full"
        return "near" if self.percent >= NEAR_PERCENT else "within"


@dataclass(frozen=True, slots=True)
class TenantLine:
    """One line of the list. `uses` is empty until the sweeper has counted."""

    project: Project
    uses: tuple[Use, ...]
    risk: float | None
    risk_limit: float | None
    has_own_policy: bool

    def use(self, quota: str) -> Use | None:
        """Give the use of one quota."""
        return next((use for use in self.uses if use.quota == quota), None)


@dataclass(frozen=True, slots=True)
class TenantSearch:
    """What to list."""

    text: str = ""
    is_archived: bool = False
    #: A project's id: list those older than it.
    after: str = ""


@dataclass(frozen=True, slots=True)
class TenantList:
    """A page of the list."""

    lines: tuple[TenantLine, ...]
    next_after: str | None
    counted_at: datetime | None


def list_tenants(session: Session, search: TenantSearch) -> TenantList:
    """Give a page of projects, newest first, with as many queries for a page as for one line."""
    projects, has_more = service.list_projects(
        session,
        after=search.after or None,
        limit=PAGE_SIZE,
        with_archived=search.is_archived,
        search=search.text or None,
    )
    ids = [project.id for project in projects]
    counted = {
        found.project_id: found
        for found in session.scalars(select(ProjectUse).where(ProjectUse.project_id.in_(ids)))
    }
    risks = last_risks(session, ids)
    policies = current_policies(session, ids)
    lines = tuple(
        TenantLine(
            project,
            read_uses(project, limits_of(session, project), counted.get(project.id)),
            risks.get(project.id),
            policies[project.id].parsed().max_tenant_risk,
            policies[project.id].project_id is not None,
        )
        for project in projects
    )
    return TenantList(
        lines,
        next_after=ids[-1] if has_more else None,
        counted_at=min((found.counted_at for found in counted.values()), default=None),
    )


def read_uses(
    project: Project, limits: Quotas, used: ProjectUse | Mapping[str, int] | None
) -> tuple[Use, ...]:
    """Put what a project uses beside its limits; nothing where it was not counted."""
    if used is None:
        return ()
    own = project.own_quotas
    return tuple(
        Use(
            quota,
            used[quota] if isinstance(used, Mapping) else getattr(used, quota),
            getattr(limits, quota),
            own[quota] is None,
        )
        for quota in MEASURES
    )
