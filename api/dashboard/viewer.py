"""Who looks at the dashboard: a signed cookie that names an API key, checked at every request.

The cookie holds the key's id, never the token, so it opens nothing but the dashboard, and revoking the
key ends the session. What a viewer may see follows from the key's scopes, as in the API.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Form, Request
from sqlalchemy.orm import Session

from api.deps import Caller, SessionDep, check_may_change
from models.api_key import ApiKey
from models.errors import Forbidden
from models.scope import STAFF, Scope
from models.session import SessionFactory


class SignInRequired(Exception):
    """Nobody is signed in, or the key is dead."""

    def __init__(self, wanted: str) -> None:
        """Keep the way back to the page that was asked for."""
        self.address = "/dashboard/login?" + urlencode({"next": wanted})
        super().__init__("sign in")


class FormExpired(Forbidden):
    """This form is too old or did not come from the dashboard. Go back, reload the page, try again."""

    code = "form_expired"


class ForStaff(Forbidden):
    """This page is for the provider's own people."""

    code = "insufficient_scope"


@dataclass(frozen=True, slots=True)
class Viewer(Caller):
    """The person behind a key: a caller who came with a cookie."""

    csrf: str

    @property
    def role(self) -> str:
        """What the frame of the page calls them; a customer has no role."""
        if self.is_operator:
            return "operator"
        return " and ".join(sorted(self.scopes & STAFF - {Scope.VIEWER})) or (
            "viewer" if self.is_staff else ""
        )

    @property
    def may_change(self) -> bool:
        """Whether pages show what changes something at all."""
        return not self.only_looks


def get_viewer(request: Request, session: SessionDep) -> Viewer:
    """Give the signed-in person.

    Raises:
        SignInRequired: there is none, or their key is dead.
        OnlyLooks: they may only look, and this is more.
    """
    key_id = request.session.get("key_id")
    key = _living_key(session, key_id) if key_id else None
    if key is None:
        request.session.clear()
        wanted = request.url.path if request.method == "GET" else "/dashboard/jobs"
        raise SignInRequired(wanted)
    viewer = Viewer(key, csrf_token(request))
    check_may_change(request, viewer)
    return viewer


def is_signed_in(sessions: SessionFactory, key_id: str) -> bool:
    """Whether a session that names this key still is one: for what goes on after its request was let in."""
    with sessions() as session:
        return _living_key(session, key_id) is not None


def _living_key(session: Session, key_id: str) -> ApiKey | None:
    key = session.get(ApiKey, key_id)
    return key if key is not None and key.why_dead is None else None


ViewerDep = Annotated[Viewer, Depends(get_viewer)]


def get_staff(viewer: ViewerDep) -> Viewer:
    """Give the signed-in person, if they work for the provider.

    Raises:
        ForStaff: they do not.
    """
    if not viewer.is_staff:
        raise ForStaff
    return viewer


StaffDep = Annotated[Viewer, Depends(get_staff)]


def remember(request: Request, key: ApiKey) -> None:
    """Start a session for the key, with nothing left over from the visit before it."""
    request.session.clear()
    request.session["key_id"] = key.id
    csrf_token(request)


def csrf_token(request: Request) -> str:
    """Give the session's form token, made at its first use."""
    token: str | None = request.session.get("csrf")
    if token is None:
        token = request.session["csrf"] = secrets.token_urlsafe(24)
    return token


def check_form(request: Request, csrf: Annotated[str, Form(max_length=200)] = "") -> None:
    """Refuse a form that another site made: SameSite=Lax alone trusts the browser's age.

    Raises:
        FormExpired: the token is absent or is not this session's.
    """
    expected = request.session.get("csrf", "")
    if not expected or not secrets.compare_digest(csrf.encode(), expected.encode()):
        raise FormExpired


CheckedForm = Depends(check_form)
