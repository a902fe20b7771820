"""Projects: made, found, changed and archived. For operators."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy import or_, select, tuple_
from sqlalchemy.orm import Session, joinedload

from api.jobs.service import cancel_job
from api.keys.service import ProjectNotFound, refuse_last_operator_keys
from api.locks import lock_name
from api.organization.quotas import WAITING, lock_jobs
from api.organization.schemas import CreateProject, QuotaLimits, UpdateProject
from models.api_key import ApiKey
from models.audit import record
from models.base import utc_now
from models.errors import Conflict, DomainError, NotFound
from models.job import IllegalTransition, Job, JobKind
from models.project import Organization, Project
from models.storage import Storage


class OrganizationNotFound(NotFound):
    """No such organization."""

    code = "organization_not_found"


class AmbiguousOrganization(DomainError):
    """Several organizations have this name. Give the organization's id."""

    code = "ambiguous_organization"


class NameTaken(Conflict):
    """A project has this name already."""

    code = "name_taken"


def create_project(session: Session, asked: CreateProject, *, by: ApiKey) -> Project:
    """Make a project, in an organization of its own when none is named.

    Raises:
        NameTaken: another project has the name, and keys are made for projects by name.
        OrganizationNotFound: an id was given that no organization has.
        AmbiguousOrganization: several organizations have the name.
    """
    claim_project_name(session, asked.name)
    chosen = {}
    if asked.organization is not None:
        chosen["organization"] = _organization(session, asked.organization)
    project = Project(name=asked.name, priority=asked.priority, **chosen)
    _set_quotas(project, asked.quotas)
    session.add(project)
    session.flush()
    _record(session, by, "project.created", project, {"name": project.name})
    return project


def list_projects(
    session: Session,
    *,
    after: str | None,
    limit: int,
    with_archived: bool,
    search: str | None = None,
) -> tuple[Sequence[Project], bool]:
    """Give one page of all projects, newest first, and whether more follow.

    Args:
        session: an open session.
        after: the last project of the page before.
        limit: the most projects.
        with_archived: whether those that ended are among them.
        search: a part of the project's or the organization's name, or one of their ids.
    """
    query = select(Project).options(joinedload(Project.organization))
    if search:
        # Of ten thousand names every one is looked at, which takes some milliseconds.
        organizations = select(Organization.id).where(
            or_(
                Organization.name.icontains(search, autoescape=True),
                Organization.id == search,
            )
        )
        query = query.where(
            or_(
                Project.name.icontains(search, autoescape=True),
                Project.id == search,
                Project.organization_id.in_(organizations),
            )
        )
    if not with_archived:
        query = query.where(Project.archived_at.is_(None))
    if after is not None:
        last = get_project(session, after)
        query = query.where(
            tuple_(Project.created_at, Project.id) < tuple_(last.created_at, last.id)
        )
    found = session.scalars(
        query.order_by(Project.created_at.desc(), Project.id.desc()).limit(limit + 1)
    ).all()
    return found[:limit], len(found) > limit


def get_project(session: Session, project_id: str) -> Project:
    """Give a project with its organization.

    Raises:
        ProjectNotFound: there is none.
    """
    project = session.scalar(
        select(Project).options(joinedload(Project.organization)).where(Project.id == project_id)
    )
    if project is None:
        raise ProjectNotFound(f"No project {project_id[:64]!r}.", param="project_id")
    return project


def update_project(
    session: Session, project_id: str, asked: UpdateProject, *, by: ApiKey
) -> Project:
    """Change a project's name, priority and limits; what was not sent stays.

    Raises:
        ProjectNotFound: there is none.
        NameTaken: another project has the name.
    """
    project = get_project(session, project_id)
    if asked.name is not None and asked.name != project.name:
        claim_project_name(session, asked.name)
        project.name = asked.name
    if asked.priority is not None:
        project.priority = asked.priority
    if asked.quotas is not None:
        _set_quotas(project, asked.quotas)
    changed = asked.model_dump(mode="json", exclude_unset=True)
    _record(session, by, "project.updated", project, changed)
    return project


def archive_project(session: Session, storage: Storage, project_id: str, *, by: ApiKey) -> Project:
    """End a project: its keys open nothing from now on, its waiting jobs are cancelled, all else stays.

    Raises:
        ProjectNotFound: there is none.
        LastOperatorKey: nobody could run the service any more.
    """
    project = get_project(session, project_id)
    if project.archived_at is not None:
        return project
    refuse_last_operator_keys(session, project)
    lock_jobs(session, project.id)
    project.archived_at = utc_now()
    waiting = session.execute(
        select(Job.id, Job.kind)
        .where(
            Job.project_id == project.id,
            Job.finished_at.is_(None),
            Job.status.in_(WAITING),
        )
        .order_by(Job.id)
    ).all()
    for job_id, kind in waiting:
        # One may have been cancelled by its owner a moment ago.
        with suppress(IllegalTransition):
            cancel_job(session, storage, JobKind(kind), job_id, project_id=project.id, by=None)
    _record(session, by, "project.archived", project, {"waiting_jobs": len(waiting)})
    return project


def _record(
    session: Session, by: ApiKey, action: str, project: Project, details: dict[str, object]
) -> None:
    record(
        session,
        actor=by,
        action=action,
        subject=("project", project.id),
        project_id=project.id,
        details=details,
    )


def claim_project_name(session: Session, name: str) -> None:
    """Keep a name for the project that is about to get it.

    Raises:
        NameTaken: another has it.
    """
    lock_name(session, "project", name)
    if session.scalar(select(Project.id).where(Project.name == name).limit(1)) is not None:
        raise NameTaken(f"A project is called {name!r} already.", param="name")


def _set_quotas(project: Project, quotas: QuotaLimits) -> None:
    for name in quotas.model_fields_set:
        setattr(project, f"quota_{name}", getattr(quotas, name))


def _organization(session: Session, name_or_id: str) -> Organization:
    by_id = session.get(Organization, name_or_id)
    if by_id is not None:
        return by_id
    if name_or_id.startswith("org-"):
        raise OrganizationNotFound(param="organization")
    lock_name(session, "organization", name_or_id)
    found = session.scalars(
        select(Organization).where(Organization.name == name_or_id).limit(2)
    ).all()
    if len(found) > 1:
        raise AmbiguousOrganization(param="organization")
    return found[0] if found else Organization(name=name_or_id)
