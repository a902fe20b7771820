"""The pages of tenants: staff see them, operators change limits, keys and whether a tenant goes on."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from api.dashboard.forms import InvalidForm, read_form
from api.dashboard.pages import render
from api.dashboard.tenants.tenant_list import TenantSearch, list_tenants
from api.dashboard.tenants.tenant_page import (
    read_months,
    read_risk_page,
    read_tenant_page,
)
from api.dashboard.viewer import CheckedForm, StaffDep, Viewer, ViewerDep
from api.deps import SessionDep, StorageDep
from api.keys import service as keys
from api.keys.schemas import CreateKey, RotateKey
from api.organization import service
from api.organization.schemas import CreateProject, UpdateProject
from models.api_key import ApiKey
from models.errors import Forbidden
from models.priority import Priority
from models.scope import STAFF, Scope

router = APIRouter()
DAY_SECONDS = 24 * 3600
Field = Annotated[str, Form(max_length=200)]


def get_operator(viewer: ViewerDep) -> Viewer:
    """Give the signed-in person if they run the service.

    Raises:
        Forbidden: they do not.
    """
    if not viewer.is_operator:
        raise Forbidden("Only an operator changes tenants, their keys and their limits.")
    return viewer


OperatorDep = Annotated[Viewer, Depends(get_operator)]


@router.get("/tenants")
def show_tenants(
    request: Request,
    session: SessionDep,
    viewer: StaffDep,
    q: Annotated[str, Query(max_length=128)] = "",
    archived: bool = False,
    after: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Show a page of the tenants."""
    search = TenantSearch(q.strip(), archived, after)
    return render(
        request,
        "tenants.html",
        viewer=viewer,
        search=search,
        tenants=list_tenants(session, search),
        address=_address,
        priorities=list(Priority),
    )


@router.post("/tenants", dependencies=[CheckedForm])
def create_tenant(
    session: SessionDep,
    viewer: OperatorDep,
    name: Field = "",
    organization: Field = "",
    priority: Field = Priority.NORMAL,
) -> Response:
    """Make a project."""
    asked = read_form(
        CreateProject, {"name": name, "organization": organization.strip(), "priority": priority}
    )
    return _back_to(service.create_project(session, asked, by=viewer.key).id)


@router.get("/tenants/{project_id}")
def show_tenant(
    request: Request, session: SessionDep, viewer: StaffDep, project_id: str
) -> Response:
    """Show one tenant."""
    return render(
        request,
        "tenant.html",
        viewer=viewer,
        page=read_tenant_page(session, project_id),
        priorities=list(Priority),
        scopes=list(Scope),
        staff=STAFF,
    )


@router.get("/tenants/{project_id}/usage")
def show_usage(
    request: Request, session: SessionDep, viewer: StaffDep, project_id: str
) -> Response:
    """Show what a tenant used in the last months: apart, for it adds up all its jobs of a year."""
    return render(
        request,
        "_tenant_usage.html",
        viewer=viewer,
        months=read_months(session, project_id),
        project_id=project_id,
    )


@router.get("/tenants/{project_id}/risk")
def show_risk(request: Request, session: SessionDep, viewer: StaffDep, project_id: str) -> Response:
    """Show a tenant's cumulative risk with the jobs behind it: apart, for it reads all models of a month."""
    return render(
        request, "_tenant_risk.html", viewer=viewer, page=read_risk_page(session, project_id)
    )


@router.post("/tenants/{project_id}", dependencies=[CheckedForm])
def change_tenant(
    session: SessionDep,
    viewer: OperatorDep,
    project_id: str,
    name: Field = "",
    priority: Field = "",
    jobs_running: Field = "",
    jobs_queued: Field = "",
    bytes_stored: Field = "",
    training_tokens_month: Field = "",
    gpu_seconds_month: Field = "",
) -> Response:
    """Change a tenant's name, priority and limits; an empty limit is the service's."""
    quotas = {
        "jobs_running": jobs_running,
        "jobs_queued": jobs_queued,
        "bytes_stored": bytes_stored,
        "training_tokens_month": training_tokens_month,
        "gpu_seconds_month": gpu_seconds_month,
    }
    asked = read_form(
        UpdateProject,
        {
            "name": name,
            "priority": priority,
            "quotas": {quota: limit.strip() or None for quota, limit in quotas.items()},
        },
    )
    service.update_project(session, project_id, asked, by=viewer.key)
    return _back_to(project_id)


@router.post("/tenants/{project_id}/archive", dependencies=[CheckedForm])
def archive_tenant(
    session: SessionDep,
    storage: StorageDep,
    viewer: OperatorDep,
    project_id: str,
    confirmation: Field = "",
) -> Response:
    """End a tenant, if its name was typed."""
    if confirmation.strip() != service.get_project(session, project_id).name:
        raise InvalidForm("Type the tenant's name to archive it. Nothing was changed.")
    service.archive_project(session, storage, project_id, by=viewer.key)
    return _back_to(project_id)


@router.post("/tenants/{project_id}/keys", dependencies=[CheckedForm])
def create_key(
    request: Request,
    session: SessionDep,
    viewer: OperatorDep,
    project_id: str,
    name: Field = "",
    user: Field = "",
    days: Field = "",
    scopes: Annotated[list[str] | None, Form(max_length=16)] = None,
) -> Response:
    """Make a key, and show its secret in this answer alone."""
    service.get_project(session, project_id)
    asked = read_form(
        CreateKey,
        {
            "name": name,
            "project": project_id,
            "scopes": scopes or ["none chosen"],
            "user": user.strip(),
            "expires_in_seconds": _seconds(days, DAY_SECONDS),
        },
    )
    return _show_key(request, viewer, *keys.make_key(session, viewer.key, asked))


@router.post("/tenants/{project_id}/keys/{key_id}/rotate", dependencies=[CheckedForm])
def rotate_key(
    request: Request,
    session: SessionDep,
    viewer: OperatorDep,
    project_id: str,
    key_id: str,
    grace_hours: Field = "24",
) -> Response:
    """Replace a key, and show the new one's secret in this answer alone."""
    keys.get_key(session, key_id, project_id=project_id)
    asked = read_form(RotateKey, {"grace_seconds": _seconds(grace_hours, 3600)})
    made = keys.rotate_key(session, key_id, grace_seconds=asked.grace_seconds, by=viewer.key)
    return _show_key(request, viewer, *made)


@router.post("/tenants/{project_id}/keys/{key_id}/revoke", dependencies=[CheckedForm])
def revoke_key(session: SessionDep, viewer: OperatorDep, project_id: str, key_id: str) -> Response:
    """Revoke a key; it stops working at once."""
    keys.get_key(session, key_id, project_id=project_id)
    keys.revoke_key(session, key_id, by=viewer.key)
    return _back_to(project_id, "keys")


def _show_key(request: Request, viewer: Viewer, key: ApiKey, token: str) -> Response:
    # No redirect: the secret must be in no address, and nothing keeps it for a second request.
    return render(request, "tenant_key.html", viewer=viewer, key=key, token=token)


def _seconds(amount: str, unit: int) -> int | str:
    """Give a span in seconds; what is no whole number is left for the schema to refuse."""
    given = amount.strip()
    return int(given) * unit if given.isascii() and given.isdigit() and len(given) < 7 else given


def _back_to(project_id: str, part: str = "") -> Response:
    anchor = f"#{part}" if part else ""
    return RedirectResponse(f"/dashboard/tenants/{project_id}{anchor}", status_code=303)


def _address(search: TenantSearch, **changed: str) -> str:
    asked = {"q": search.text, "archived": "true" if search.is_archived else "", **changed}
    query = urlencode({name: value for name, value in asked.items() if value})
    return "/dashboard/tenants" + (f"?{query}" if query else "")
