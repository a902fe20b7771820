"""/v1/models/{model}/export: a released adapter to take along."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api.deps import Caller, CallerDep, SessionDep, SettingsDep, StorageDep
from api.export import service
from api.safety.service import signed_report, signer
from models.audit import record
from models.settings import Settings
from models.storage import Storage

router = APIRouter(tags=["models"])

TAR: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "adapter_config.json, adapter_model.safetensors and the signed safety_report.json.",
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/v1/models/{model:path}/export", response_class=StreamingResponse, responses=TAR)
def export(
    model: str,
    caller: CallerDep,
    session: SessionDep,
    storage: StorageDep,
    settings: SettingsDep,
) -> StreamingResponse:
    """Download a released model's adapter as a tar of its PEFT folder, if the provider allows it."""
    return download(session, storage, settings, model, caller)


def download(
    session: Session, storage: Storage, settings: Settings, model: str, caller: Caller
) -> StreamingResponse:
    """Give a released model's adapter to whoever may have it, and write down who took it.

    Raises:
        ModelNotFound: it is absent, or not theirs to see.
        NoAdapter: it has weights of its own.
        ExportNotAllowed: the provider keeps it in the house.
        ModelBlocked: the gate has not released it.
        StorageMissing: it is gone or damaged.
    """
    version = service.find_exportable(
        session, storage, settings, model, project_id=caller.visible_project_id
    )
    report = signed_report(session, storage, settings, version) if signer(settings) else None
    export = service.prepare(storage, version, report)
    record(
        session,
        actor=caller.key,
        action="model.exported",
        subject=("model", version.id),
        project_id=version.project_id,
    )
    return StreamingResponse(
        service.tar(storage, export),
        media_type="application/x-tar",
        headers={
            "content-length": str(export.bytes),
            "content-disposition": 'attachment; filename="adapter.tar"',
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        },
    )
