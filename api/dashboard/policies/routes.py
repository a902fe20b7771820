"""The pages of policies: staff see and try them, operators make, activate and deactivate them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from sqlalchemy.orm import Session
from starlette.datastructures import FormData
from starlette.responses import RedirectResponse, Response

from api.dashboard.pages import render
from api.dashboard.policies import policy_pages
from api.dashboard.policies.rules import PARTS, RULES, compare, from_form, in_words, to_form
from api.dashboard.viewer import CheckedForm, StaffDep, Viewer
from api.deps import SessionDep
from api.keys.service import ProjectNotFound
from api.policies import service
from api.policies.schemas import MAX_NOTE, CreatePolicy
from api.policies.service import PREFIX
from models.api_key import Project
from models.errors import Forbidden

router = APIRouter(prefix="/policies")

Reason = Annotated[str, Form(min_length=1, max_length=MAX_NOTE)]


def get_operator(viewer: StaffDep) -> Viewer:
    """Give the signed-in person, if they may change policies.

    Raises:
        Forbidden: they may not.
    """
    if not viewer.is_operator:
        raise Forbidden("Only an operator changes policies.")
    return viewer


OperatorDep = Annotated[Viewer, Depends(get_operator)]


async def read_form(request: Request) -> FormData:
    """Give a form whose fields are the rules, which are read in one place with their errors."""
    return await request.form()


@router.get("")
def show_policies(
    request: Request, session: SessionDep, viewer: StaffDep, after: str | None = None
) -> Response:
    """Show what is in force, and every version."""
    return render(
        request,
        "policies.html",
        viewer=viewer,
        page=policy_pages.list_policies(session, after),
        after=after,
    )


@router.get("/new")
def try_new(
    request: Request,
    session: SessionDep,
    viewer: StaffDep,
    project: str = "",
    start: str = "",
    after: str | None = None,
) -> Response:
    """Show the form of a new version; once it was filled in, what that version would change."""
    query = request.query_params
    is_filled = any(rule.name in query for rule in RULES)
    if is_filled:
        return _show_form(request, session, viewer, query, project_id=project or None, after=after)
    _, rules = policy_pages.present_rules(session, _known(session, project or None))
    if start:
        rules = service.get_policy(session, start).parsed()
    return _show_form(
        request, session, viewer, to_form(rules), project_id=project or None, is_tried=False
    )


@router.post("", dependencies=[CheckedForm])
def create(
    request: Request,
    session: SessionDep,
    viewer: OperatorDep,
    form: Annotated[FormData, Depends(read_form)],
    note: Reason,
    project: Annotated[str, Form(max_length=256)] = "",
    activate: Annotated[bool, Form()] = False,
) -> Response:
    """Keep a new version, and put it in force if that was asked for."""
    values = {name: value for name, value in form.items() if isinstance(value, str)}
    rules, errors = from_form(values)
    if rules is None or errors:
        return _show_form(request, session, viewer, values, project_id=project or None, status=400)
    asked = CreatePolicy(rules=rules, project=project or None, note=note, activate=activate)
    policy = service.create_policy(session, asked, by=viewer.key)
    return _to(f"{PREFIX}{policy.version}")


@router.get("/{policy_id}")
def show_policy(
    request: Request,
    session: SessionDep,
    viewer: StaffDep,
    policy_id: str,
    dry_run: bool = False,
    after: str | None = None,
) -> Response:
    """Show one version, and what it would change if that is asked for."""
    policy = service.get_policy(session, policy_id)
    page = policy_pages.read_policy(session, policy)
    trial = None
    if dry_run:
        trial = policy_pages.try_rules(session, policy.parsed(), policy.project_id, after)
    return render(
        request,
        "policy.html",
        viewer=viewer,
        page=page,
        trial=trial,
        here=f"/dashboard/policies/{page.line.id}?dry_run=1",
    )


@router.post("/{policy_id}/activate", dependencies=[CheckedForm])
def activate(session: SessionDep, viewer: OperatorDep, policy_id: str, reason: Reason) -> Response:
    """Put a version in force."""
    service.activate_policy(session, policy_id, reason, by=viewer.key)
    return _to(policy_id)


@router.post("/{policy_id}/deactivate", dependencies=[CheckedForm])
def deactivate(
    session: SessionDep, viewer: OperatorDep, policy_id: str, reason: Reason
) -> Response:
    """Take a project's own policy out of force."""
    service.deactivate_policy(session, policy_id, reason, by=viewer.key)
    return _to(policy_id)


def _show_form(
    request: Request,
    session: Session,
    viewer: Viewer,
    values: Mapping[str, str],
    *,
    project_id: str | None,
    is_tried: bool = True,
    after: str | None = None,
    status: int = 200,
) -> Response:
    _known(session, project_id)
    candidate, errors = from_form(values) if is_tried else (None, {})
    present_id, present = policy_pages.present_rules(session, project_id)
    trial = None
    if candidate is not None:
        trial = policy_pages.try_rules(session, candidate, project_id, after)
    return render(
        request,
        "policy_new.html",
        status_code=400 if errors else status,
        viewer=viewer,
        parts_of_form=PARTS,
        values={rule.name: values.get(rule.name, "") for rule in RULES},
        errors=errors,
        project_id=project_id,
        project_name=_name(session, project_id),
        projects=policy_pages.offered_projects(session),
        present_id=present_id,
        is_own=project_id is not None and policy_pages.has_own_policy(session, project_id),
        comparison=compare(present, candidate) if candidate else (),
        words=in_words(candidate) if candidate else {},
        trial=trial,
        here=f"{request.url.path}?{_without_after(request)}",
    )


def _known(session: Session, project_id: str | None) -> str | None:
    if project_id is not None and session.get(Project, project_id) is None:
        raise ProjectNotFound(f"No project {project_id[:64]!r}.")
    return project_id


def _name(session: Session, project_id: str | None) -> str:
    return session.get_one(Project, project_id).name if project_id is not None else ""


def _without_after(request: Request) -> str:
    return str(request.url.remove_query_params("after").query)


def _to(policy_id: str) -> Response:
    return RedirectResponse(f"/dashboard/policies/{policy_id}", status_code=303)
