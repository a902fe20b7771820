"""/v1/organization: projects, their keys, their limits and what they used.

The paths and shapes are those of the stock client's `client.admin.organization`, as far as they mean
something here; `quotas` and `usage/fine_tuning` are ours.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from api.deps import Caller, CallerDep, OperatorDep, SessionDep, StorageDep, require_operator
from api.keys import service as keys
from api.keys.schemas import CreateKey
from api.organization import service
from api.organization.quotas import limits_of, show_use
from api.organization.schemas import (
    AdminKeyObject,
    CreateAdminKey,
    CreatedAdminKey,
    CreateProject,
    ProjectKeyList,
    ProjectKeyObject,
    ProjectList,
    ProjectObject,
    QuotaList,
    QuotaObject,
    UpdateProject,
    UsageBucket,
    UsagePage,
    UsageResult,
)
from api.organization.usage import EARLIEST, LATEST, Width, read_usage
from api.schemas import After, Deleted, Identifier, Listing, PageLimit
from models.base import unix, utc_now
from models.scope import Scope

router = APIRouter(prefix="/v1/organization", tags=["organization"])
OPERATORS = [Depends(require_operator)]

Moment = Annotated[int, Query(ge=unix(EARLIEST), le=unix(LATEST), description="Unix seconds.")]
MAX_BUCKETS = 366
MAX_PROJECTS = 100


@router.post("/projects")
def create_project(body: CreateProject, caller: OperatorDep, session: SessionDep) -> ProjectObject:
    """Make a project."""
    return ProjectObject.of(service.create_project(session, body, by=caller.key))


@router.get("/projects", dependencies=OPERATORS)
def list_projects(
    session: SessionDep,
    after: After = None,
    limit: PageLimit = 20,
    include_archived: bool = False,
    search: Annotated[
        Identifier | None, Query(description="A part of its or its organization's name, or an id.")
    ] = None,
) -> ProjectList:
    """List projects, newest first."""
    found, has_more = service.list_projects(
        session, after=after, limit=limit, with_archived=include_archived, search=search
    )
    return ProjectList(
        data=[ProjectObject.of(project) for project in found],
        has_more=has_more,
        last_id=found[-1].id if found else None,
    )


@router.get("/projects/{project_id}", dependencies=OPERATORS)
def retrieve_project(project_id: str, session: SessionDep) -> ProjectObject:
    """Show one project."""
    return ProjectObject.of(service.get_project(session, project_id))


@router.post("/projects/{project_id}")
def update_project(
    project_id: str, body: UpdateProject, caller: OperatorDep, session: SessionDep
) -> ProjectObject:
    """Change a project's name, priority or limits; what is left out stays."""
    return ProjectObject.of(service.update_project(session, project_id, body, by=caller.key))


@router.post("/projects/{project_id}/archive")
def archive_project(
    project_id: str, caller: OperatorDep, session: SessionDep, storage: StorageDep
) -> ProjectObject:
    """End a project: its keys stop working, its waiting jobs are cancelled, what it owns stays."""
    return ProjectObject.of(service.archive_project(session, storage, project_id, by=caller.key))


@router.get("/projects/{project_id}/api_keys", dependencies=OPERATORS)
def list_project_keys(
    project_id: str, session: SessionDep, after: After = None, limit: PageLimit = 20
) -> ProjectKeyList:
    """List a project's keys, newest first, without those that were revoked."""
    service.get_project(session, project_id)
    found, has_more = keys.list_keys(
        session, project_id=project_id, after=after, limit=limit, with_revoked=False
    )
    return ProjectKeyList(
        data=[ProjectKeyObject.of(key) for key in found],
        has_more=has_more,
        last_id=found[-1].id if found else None,
    )


@router.get("/projects/{project_id}/api_keys/{key_id}", dependencies=OPERATORS)
def retrieve_project_key(project_id: str, key_id: str, session: SessionDep) -> ProjectKeyObject:
    """Show one key of a project."""
    return ProjectKeyObject.of(keys.get_key(session, key_id, project_id=project_id))


@router.delete("/projects/{project_id}/api_keys/{key_id}")
def delete_project_key(
    project_id: str, key_id: str, caller: OperatorDep, session: SessionDep
) -> Deleted:
    """Revoke a key of a project."""
    keys.get_key(session, key_id, project_id=project_id)
    keys.revoke_key(session, key_id, by=caller.key)
    return Deleted(id=key_id, object="organization.project.api_key.deleted")


@router.post("/admin_api_keys")
def create_admin_key(
    body: CreateAdminKey, caller: OperatorDep, session: SessionDep
) -> CreatedAdminKey:
    """Make a key with the scope operator in the caller's project. Its secret is shown here alone."""
    asked = CreateKey(
        name=body.name, scopes={Scope.OPERATOR}, expires_in_seconds=body.expires_in_seconds
    )
    key, token = keys.make_key(session, caller.key, asked)
    return CreatedAdminKey(**AdminKeyObject.of(key).model_dump(), value=token)


@router.get("/admin_api_keys", dependencies=OPERATORS)
def list_admin_keys(
    session: SessionDep,
    after: After = None,
    limit: PageLimit = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Listing[AdminKeyObject]:
    """List the keys with the scope operator, without those that were revoked."""
    found, has_more = keys.list_keys(
        session,
        scope=Scope.OPERATOR,
        after=after,
        limit=limit,
        with_revoked=False,
        is_ascending=order == "asc",
    )
    return Listing(data=[AdminKeyObject.of(key) for key in found], has_more=has_more)


@router.get("/admin_api_keys/{key_id}", dependencies=OPERATORS)
def retrieve_admin_key(key_id: str, session: SessionDep) -> AdminKeyObject:
    """Show one key with the scope operator."""
    return AdminKeyObject.of(keys.get_key(session, key_id, scope=Scope.OPERATOR))


@router.delete("/admin_api_keys/{key_id}")
def delete_admin_key(key_id: str, caller: OperatorDep, session: SessionDep) -> Deleted:
    """Revoke a key with the scope operator; the last one stays."""
    keys.get_key(session, key_id, scope=Scope.OPERATOR)
    keys.revoke_key(session, key_id, by=caller.key)
    return Deleted(id=key_id, object="organization.admin_api_key.deleted")


@router.get("/quotas")
def quotas(
    caller: CallerDep,
    session: SessionDep,
    project_id: Annotated[
        Identifier | None, Query(description="By default one's own; others' for operators.")
    ] = None,
) -> QuotaList:
    """Show a project's limits and how much of each is used."""
    wanted = project_id or caller.project.id
    if wanted != caller.project.id and not caller.is_operator:
        raise keys.ProjectNotFound(f"No project {wanted[:64]!r}.", param="project_id")
    project = service.get_project(session, wanted)
    limits, own = limits_of(session, project), project.own_quotas
    return QuotaList(
        project_id=project.id,
        data=[
            QuotaObject(
                name=name, limit=getattr(limits, name), used=used, is_default=own[name] is None
            )
            for name, used in show_use(session, project.id).items()
        ],
    )


@router.get("/usage/fine_tuning")
def usage(
    caller: CallerDep,
    session: SessionDep,
    start_time: Moment | None = None,
    end_time: Moment | None = None,
    bucket_width: Width = Width.DAY,
    project_ids: Annotated[
        list[Identifier] | None, Query(alias="project_ids[]", max_length=MAX_PROJECTS)
    ] = None,
    limit: Annotated[int | None, Query(ge=1, le=MAX_BUCKETS, description="Buckets.")] = None,
    page: Annotated[Moment | None, Query(description="`next_page` of the page before.")] = None,
) -> UsagePage:
    """Report jobs, trained tokens, GPU seconds and stored bytes by day or month and project.

    Operators see every project, everyone else their own. By default it is the last 31 days, or 12 months.
    """
    end = _moment(end_time) or utc_now()
    usual = timedelta(days=30 if bucket_width is Width.DAY else 335)
    buckets, following = read_usage(
        session,
        start=_moment(page) or _moment(start_time) or end - usual,
        end=end,
        width=bucket_width,
        limit=limit or bucket_width.usual,
        project_ids=_readable(caller, project_ids),
    )
    return UsagePage(
        data=[
            UsageBucket(
                start_time=unix(bucket.start),
                end_time=unix(bucket.end),
                results=[
                    UsageResult(
                        project_id=project_id,
                        jobs=used.jobs,
                        trained_tokens=used.trained_tokens,
                        gpu_seconds=round(used.gpu_seconds, 3),
                        bytes=used.bytes,
                    )
                    for project_id, used in sorted(bucket.used.items())
                ],
            )
            for bucket in buckets
        ],
        has_more=following is not None,
        next_page=str(unix(following)) if following is not None else None,
    )


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _readable(caller: Caller, project_ids: list[str] | None) -> list[str] | None:
    if caller.is_operator:
        return project_ids
    own = caller.project.id
    return [own] if project_ids is None or own in project_ids else []
