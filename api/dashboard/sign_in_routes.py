"""Signing in with an API key or at an OpenID provider, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import RedirectResponse, Response

from api.dashboard.openid import NoRole, OpenId, ProviderUnavailable
from api.dashboard.pages import render, sections
from api.dashboard.viewer import CheckedForm, ViewerDep, csrf_token, remember
from api.deps import SessionDep, SettingsDep
from api.keys import people
from api.keys.people import Person
from models.api_key import find_key
from models.errors import DomainError, NotFound, Unauthorized

router = APIRouter()
HOME = "/dashboard/"


@router.get("/")
def enter(viewer: ViewerDep) -> Response:
    """Lead to where this person's day begins."""
    return RedirectResponse(sections(viewer)[0].address, status_code=303)


@router.get("/login")
def show_sign_in(request: Request, next: str = HOME) -> Response:
    """Show the sign-in form."""
    return _show_form(request, next)


@router.post("/login", dependencies=[CheckedForm])
def sign_in(
    request: Request,
    session: SessionDep,
    api_key: Annotated[str, Form(max_length=500)] = "",
    next: Annotated[str, Form(max_length=2000)] = HOME,
) -> Response:
    """Sign in with a living key."""
    try:
        key = find_key(session, api_key.strip())
    except Unauthorized:
        problem = "This API key is unknown, has expired or was revoked."
        return _show_form(request, next, problem, status_code=401, is_key_wrong=True)
    remember(request, key)
    return RedirectResponse(_own_page(next), status_code=303)


def get_openid(request: Request) -> OpenId:
    """Give the provider at which people sign in.

    Raises:
        NotFound: there is none.
    """
    openid: OpenId | None = request.app.state.openid
    if openid is None:
        raise NotFound("Here people sign in with API keys alone.")
    return openid


OpenIdDep = Annotated[OpenId, Depends(get_openid)]


@router.get("/login/openid")
async def begin_elsewhere(request: Request, openid: OpenIdDep, next: str = HOME) -> Response:
    """Lead to the provider."""
    next = _own_page(next)
    try:
        return RedirectResponse(await openid.begin(request, next), status_code=303)
    except ProviderUnavailable as error:
        return _show_form(request, next, error.message, status_code=error.status_code)


async def come_back(request: Request, openid: OpenIdDep) -> tuple[Person, str] | DomainError:
    """Ask the provider who came back, before any connection to the database is taken."""
    try:
        return await openid.finish(request)
    except DomainError as refusal:
        return refusal


@router.get("/login/callback")
def enter_from_elsewhere(
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    came: Annotated[tuple[Person, str] | DomainError, Depends(come_back)],
) -> Response:
    """Sign in whoever the provider vouches for, if they have a role here."""
    if isinstance(came, DomainError):
        if isinstance(came, NoRole):
            people.shut_out(session, came.identity)
        return _show_form(request, HOME, came.message, status_code=came.status_code)
    person, next = came
    try:
        key = people.enter(
            session, person, project=settings.oidc_project, seconds=settings.oidc_session_seconds
        )
    except people.AccessRevoked as error:
        return _show_form(request, HOME, error.message, status_code=error.status_code)
    remember(request, key)
    return RedirectResponse(_own_page(next), status_code=303)


@router.post("/logout", dependencies=[CheckedForm])
def sign_out(request: Request) -> Response:
    """End the session."""
    request.session.clear()
    return RedirectResponse("/dashboard/login", status_code=303)


def _show_form(
    request: Request,
    next: str,
    problem: str | None = None,
    *,
    status_code: int = 200,
    is_key_wrong: bool = False,
) -> Response:
    openid: OpenId | None = request.app.state.openid
    return render(
        request,
        "login.html",
        status_code=status_code,
        csrf=csrf_token(request),
        next=_own_page(next),
        problem=problem,
        is_key_wrong=is_key_wrong,
        elsewhere=openid.name if openid else None,
    )


def _own_page(address: str) -> str:
    """Give the address if it is one of ours, so that no link through here leads elsewhere."""
    is_ours = address.startswith("/dashboard/") and "\\" not in address and address.isprintable()
    return address if is_ours else HOME
