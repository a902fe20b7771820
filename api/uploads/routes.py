"""/v1/uploads: a large file in parts, put together into one of /v1/files."""

from __future__ import annotations

from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool

from api.deps import CustomerDep, SessionDep, SettingsDep, StorageDep, app_transaction
from api.files.intake import taking_in
from api.files.routes import CHECKED_AT_ONCE
from api.multipart import InvalidUpload, read_form
from api.uploads import service
from api.uploads.schemas import CompleteUpload, CreateUpload, PartObject, UploadObject
from api.uploads.service import Assembly
from models.base import new_id
from models.storage import Storage, StorageMissing
from models.upload import MAX_PART_BYTES, Upload, incoming_key

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

PART_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("")
def create(
    body: CreateUpload, caller: CustomerDep, session: SessionDep, settings: SettingsDep
) -> UploadObject:
    """Declare a file that will come in parts. It has an hour to be completed."""
    return UploadObject.of(
        service.create_upload(session, caller.project.id, body, max_bytes=settings.max_upload_bytes)
    )


@router.post("/{upload_id}/parts", openapi_extra=PART_FORM)
async def add_part(
    upload_id: str, request: Request, caller: CustomerDep, storage: StorageDep
) -> PartObject:
    """Add a part of up to 64 MiB. Parts may come in any order and at the same time."""
    project_id = caller.project.id
    # Before the bytes are taken; and once more when they are there.
    await run_in_threadpool(_look, request, project_id, upload_id)
    part_id = new_id("part", separator="_")
    intake = taking_in(storage, max_bytes=MAX_PART_BYTES, name=part_id, param="data")
    async with contextmanager_in_threadpool(intake) as taken:
        form = await read_form(request, file_field="data", write=taken.write)
        for name in form.fields:
            raise InvalidUpload(f"The field {name[:64]!r} is not supported.", param=name[:64])
    size = taken.content.bytes
    return await run_in_threadpool(
        _keep_part, request, storage, project_id, upload_id, part_id, size
    )


@router.post("/{upload_id}/complete")
async def complete(
    upload_id: str, body: CompleteUpload, request: Request, caller: CustomerDep, storage: StorageDep
) -> UploadObject:
    """Make a file of the parts, in the order given. It is checked as any file is.

    If rows are faulty the upload stays pending. The same completion sent again gives the same file.
    """
    work = partial(_complete, request, storage, caller.project.id, upload_id, body)
    return await to_thread.run_sync(work, limiter=CHECKED_AT_ONCE)


@router.post("/{upload_id}/cancel")
def cancel(upload_id: str, caller: CustomerDep, session: SessionDep) -> UploadObject:
    """Give an upload up. Its parts are removed, and no more can be added."""
    return UploadObject.of(service.cancel_upload(session, caller.project.id, upload_id))


def _look(request: Request, project_id: str, upload_id: str) -> None:
    with app_transaction(request.app) as session:
        service.get_pending(session, project_id, upload_id)


def _keep_part(
    request: Request, storage: Storage, project_id: str, upload_id: str, part_id: str, size: int
) -> PartObject:
    try:
        with app_transaction(request.app) as session:
            part = service.add_part(session, project_id, upload_id, part_id=part_id, size=size)
            return PartObject.of(part)
    except BaseException:
        storage.delete(incoming_key(part_id))
        raise


def _complete(
    request: Request, storage: Storage, project_id: str, upload_id: str, body: CompleteUpload
) -> UploadObject:
    plan = _plan(request, project_id, upload_id, body)
    if isinstance(plan, UploadObject):
        return plan
    try:
        with (
            service.assembled(storage, plan, md5=body.md5) as content,
            app_transaction(request.app) as session,
        ):
            upload = service.complete_upload(session, storage, project_id, plan, content)
            return UploadObject.of(upload, service.made_file(session, upload))
    except StorageMissing:
        # The parts went while they were read. If the upload has ended, that is the answer.
        plan = _plan(request, project_id, upload_id, body)
        if isinstance(plan, UploadObject):
            return plan
        raise


def _plan(
    request: Request, project_id: str, upload_id: str, body: CompleteUpload
) -> Assembly | UploadObject:
    with app_transaction(request.app) as session:
        plan = service.plan_completion(session, project_id, upload_id, body.part_ids)
        if isinstance(plan, Upload):
            return UploadObject.of(plan, service.made_file(session, plan))
        return plan
