"""The page of the installation, and its live part."""

from __future__ import annotations

from itertools import groupby

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dashboard.pages import is_partial, render
from api.dashboard.viewer import StaffDep
from api.deps import SessionDep, SettingsDep, StorageDep
from api.system.routes import DoorbellDep
from api.system.service import MAX_COUNTED, read_system
from api.system.shown_settings import ShownSetting, show_settings
from models.settings import Settings

router = APIRouter()


@router.get("/system")
def show_system(
    request: Request,
    session: SessionDep,
    storage: StorageDep,
    settings: SettingsDep,
    doorbell: DoorbellDep,
    viewer: StaffDep,
) -> Response:
    """Show how every part is, or only the live part of the page."""
    return render(
        request,
        "_system.html" if is_partial(request) else "system.html",
        viewer=viewer,
        system=read_system(session, settings, storage, doorbell),
        settings=_grouped(settings) if viewer.is_operator else None,
        max_counted=MAX_COUNTED,
    )


def _grouped(settings: Settings) -> dict[str, list[ShownSetting]]:
    shown = show_settings(settings)
    return {group: list(found) for group, found in groupby(shown, key=lambda s: s.group)}
