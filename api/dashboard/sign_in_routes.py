"""Signing in with an API key, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from api.dashboard.pages import render, sections
from api.dashboard.viewer import CheckedForm, ViewerDep, csrf_token, remember
from api.deps import SessionDep
from models.api_key import find_key
from models.errors import Unauthorized

router = APIRouter()
HOME = "/dashboard/"


@router.get("/")
def enter(viewer: ViewerDep) -> Response:
    """Lead to where this person's day begins."""
    return RedirectResponse(sections(viewer)[0].address, status_code=303)


@router.get("/login")
def show_sign_in(request: Request, next: str = HOME) -> Response:
    """Show the sign-in form."""
    return render(
        request, "login.html", csrf=csrf_token(request), next=_own_page(next), problem=None
    )


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
        return render(
            request,
            "login.html",
            status_code=401,
            csrf=csrf_token(request),
            next=_own_page(next),
            problem="This API key is unknown, has expired or was revoked.",
        )
    remember(request, key)
    return RedirectResponse(_own_page(next), status_code=303)


@router.post("/logout", dependencies=[CheckedForm])
def sign_out(request: Request) -> Response:
    """End the session."""
    request.session.clear()
    return RedirectResponse("/dashboard/login", status_code=303)


def _own_page(address: str) -> str:
    """Give the address if it is one of ours, so that no link through here leads elsewhere."""
    is_ours = address.startswith("/dashboard/") and "\\" not in address and address.isprintable()
    return address if is_ours else HOME
