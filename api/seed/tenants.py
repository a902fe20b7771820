"""More tenants with limits of their own, and a key for each role that staff may have."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from api.keys.schemas import CreateKey
from api.keys.service import make_key
from api.organization.quotas import MEASURES
from api.organization.schemas import CreateProject, QuotaLimits, UpdateProject
from api.organization.service import create_project, update_project
from models.api_key import ApiKey, Project
from models.base import utc_now
from models.evaluation import latest_evaluation
from models.priority import Priority
from models.risk import Ancestor, TunedModel, add_up, risk_history
from models.scope import Scope

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class StaffKey:
    """A key of somebody who works for the provider."""

    key: ApiKey
    token: str


def seed_roles(session: Session, by: ApiKey) -> dict[Scope, StaffKey]:
    """Make a viewer's, a reviewer's and a provider's key beside the operator's."""
    people = {Scope.VIEWER: "Vera", Scope.REVIEWER: "Ravi", Scope.PROVIDER: "Pia"}
    made = {}
    for scope, name in people.items():
        key, token = make_key(session, by, CreateKey(name=scope.value, scopes={scope}, user=name))
        made[scope] = StaffKey(key, token)
    return made


def seed_tenants(session: Session, by: ApiKey) -> tuple[Project, Project]:
    """Make a tenant whose jobs come first, one whose jobs come last, and one that left."""
    health = create_project(
        session,
        CreateProject(
            name="Lighthouse Health",
            priority=Priority.HIGH,
            # A tenant at this limit has waiting jobs that no worker takes, so that they stay to be looked at.
            quotas=QuotaLimits(jobs_running=1, bytes_stored=GIB),
        ),
        by=by,
    )
    retail = create_project(
        session,
        CreateProject(
            name="Bluefin Retail",
            priority=Priority.LOW,
            quotas=QuotaLimits(jobs_running=1),
        ),
        by=by,
    )
    for project in (health, retail):
        make_key(session, by, CreateKey(name="ci", project=project.id))
    left = create_project(session, CreateProject(name="Kestrel Games"), by=by)
    left.archived_at = utc_now()
    return health, retail


def limit_running(session: Session, projects: list[Project], *, by: ApiKey) -> None:
    """Let each project have one running job, which it has: what waits goes on waiting."""
    for project in projects:
        quotas = QuotaLimits(jobs_running=1)
        update_project(session, project.id, UpdateProject(quotas=quotas), by=by)


def limit_near_use(
    session: Session, project: Project, quota: str, *, percent: float, by: ApiKey
) -> None:
    """Set a limit of which the project uses so much."""
    used = MEASURES[quota].of(session, project.id)
    quotas = QuotaLimits.model_validate({quota: max(1, round(100 * used / percent))})
    update_project(session, project.id, UpdateProject(quotas=quotas), by=by)


def remember_risks(session: Session, project: Project) -> None:
    """Write beside each decision on the project's models the risk that the gate would have made it with."""
    told: list[TunedModel] = []
    aligned: dict[str, Ancestor] = {}
    for step in reversed(risk_history(session, project.id, at_most=500)):
        parent = step.model.parent_id
        if parent is not None and parent not in aligned:
            measured = latest_evaluation(session, parent)
            percent = measured.harmful_score_percent if measured else 0.0
            aligned[parent] = Ancestor(None, False, percent)
        told.append(step.model)
        decision = latest_evaluation(session, step.model.version_id)
        if decision is not None:
            decision.tenant_risk = add_up(told, aligned).score
    session.flush()
