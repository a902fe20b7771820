"""The audit log: search, whether its chain is whole, and the export."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.audit.routes import stream_export
from api.dashboard.audit.entries import MAX_CHARACTERS, Search, list_entries
from api.dashboard.pages import is_partial, render
from api.dashboard.viewer import StaffDep, get_staff
from api.deps import SessionDep
from models.audit import verify
from models.audit_chain import Head
from models.errors import DomainError

router = APIRouter(prefix="/audit")

Asked = Annotated[str, Query(max_length=MAX_CHARACTERS)]


class UnknownHead(DomainError):
    """A head is a position, a colon and 64 hexadecimal digits, as it was shown."""

    code = "unknown_head"


def get_search(
    text: Asked = "",
    action: Asked = "",
    actor: Asked = "",
    subject: Asked = "",
    project: Asked = "",
    since: Asked = "",
    until: Asked = "",
) -> Search:
    """Read the search form."""
    given = (text, action, actor, subject, project, since, until)
    return Search(*(value.strip() for value in given))


SearchDep = Annotated[Search, Depends(get_search)]


@router.get("")
def show_entries(
    request: Request,
    session: SessionDep,
    viewer: StaffDep,
    search: SearchDep,
    after: str | None = None,
) -> Response:
    """Show what is searched for, newest first."""
    return render(
        request,
        "audit.html",
        viewer=viewer,
        search=search,
        page=list_entries(session, search, after),
        after=after,
    )


@router.get("/export", dependencies=[Depends(get_staff)])
def export(request: Request, search: SearchDep) -> Response:
    """Give every entry that is searched for as JSON Lines, oldest first."""
    return stream_export(request, search.wanted())


@router.get("/chain")
def check_chain(
    request: Request, session: SessionDep, viewer: StaffDep, head: Asked = ""
) -> Response:
    """Check the whole chain, and that a head that was noted before is still in it."""
    report = verify(session, _read_head(head.strip()))
    return render(
        request,
        "_chain.html" if is_partial(request) else "audit_chain.html",
        viewer=viewer,
        report=report,
        head=head.strip(),
    )


def _read_head(text: str) -> Head | None:
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)
    if found is None:
        raise UnknownHead
    return Head(int(found[1]), found[2])
