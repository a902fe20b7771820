"""The overview, and its live part."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dashboard.overview.page import read_overview
from api.dashboard.pages import is_partial, render
from api.dashboard.viewer import StaffDep
from api.deps import SessionDep, SettingsDep, StorageDep
from api.organization.quotas import WORDS

router = APIRouter()


@router.get("/overview")
def show_overview(
    request: Request,
    session: SessionDep,
    storage: StorageDep,
    settings: SettingsDep,
    viewer: StaffDep,
) -> Response:
    """Show what needs a person and how everything is, or only the live part."""
    return render(
        request,
        "_overview.html" if is_partial(request) else "overview.html",
        viewer=viewer,
        page=read_overview(session, storage, settings.quotas),
        quota_words=WORDS,
    )
