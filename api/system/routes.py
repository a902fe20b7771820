"""/v1/system: how the installation is. For staff; settings for operators alone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from api.deps import SessionDep, SettingsDep, StaffDep, StorageDep
from api.queue import Doorbell
from api.system.schemas import SystemObject
from api.system.service import read_system
from api.system.shown_settings import show_settings

router = APIRouter(prefix="/v1/system", tags=["system"])


def get_doorbell(request: Request) -> Doorbell:
    """Give the doorbell, which knows how long the broker's queue is."""
    doorbell: Doorbell = request.app.state.doorbell
    return doorbell


DoorbellDep = Annotated[Doorbell, Depends(get_doorbell)]


@router.get("")
def retrieve(
    caller: StaffDep,
    session: SessionDep,
    settings: SettingsDep,
    storage: StorageDep,
    doorbell: DoorbellDep,
) -> SystemObject:
    """Read versions, migrations, workers and backlogs, and ask every part whether it is well."""
    return SystemObject.of(
        read_system(session, settings, storage, doorbell),
        show_settings(settings) if caller.is_operator else None,
    )
