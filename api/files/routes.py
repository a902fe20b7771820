"""/v1/files: upload, list, read and delete data sets and results."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from api.deps import (
    CallerDep,
    CustomerDep,
    SessionDep,
    SettingsDep,
    StorageDep,
    after_commit,
    app_transaction,
)
from api.files import service
from api.files.schemas import FileList, FileObject
from api.schemas import After, Deleted
from models.errors import DomainError
from models.file import File, get_file
from models.storage import Storage

router = APIRouter(prefix="/v1/files", tags=["files"])

MAX_FIELDS = 8
MAX_LISTED = 10_000
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": [service.FINE_TUNE]},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


class InvalidUpload(DomainError):
    """An upload is a multipart form with the fields `purpose` and `file`."""

    code = "invalid_upload"


class FileTooLarge(DomainError):
    """The file is larger than the service accepts."""

    status_code = 413
    code = "file_too_large"


@router.post("", openapi_extra=FORM)
async def upload(
    request: Request, caller: CustomerDep, storage: StorageDep, settings: SettingsDep
) -> FileObject:
    """Upload a data set in JSON Lines.

    Every row is checked before the answer. If any is faulty nothing is kept, and `error.faults` names the
    line, the field and the reason of up to a hundred of them.
    """
    # The form is read here and not by FastAPI, so that a wrong key is refused before the bytes are taken.
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise InvalidUpload("The form has no part `file` with a file name.", param="file")
        if not isinstance(purpose, str):
            raise InvalidUpload("The form has no field `purpose`.", param="purpose")
        for name in form:
            if name not in ("file", "purpose"):
                raise InvalidUpload(
                    f"The field {name[:64]!r} is not supported.", param=name.partition("[")[0][:64]
                )
        if (file.size or 0) > settings.max_file_bytes:
            raise FileTooLarge(
                f"The file is larger than {settings.max_file_bytes:,} bytes.", param="file"
            )
        return await run_in_threadpool(_keep, request, storage, file, purpose, caller.project.id)


@router.get("")
def list_files(
    caller: CallerDep,
    session: SessionDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
    order: Literal["asc", "desc"] = "desc",
    after: After = None,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> FileList:
    """List the project's files, newest first."""
    files, has_more = service.list_files(
        session,
        caller.project.id,
        limit=limit,
        after=after,
        is_ascending=order == "asc",
        purpose=purpose,
    )
    return FileList(
        data=[FileObject.of(file) for file in files],
        has_more=has_more,
        first_id=files[0].id if files else None,
        last_id=files[-1].id if files else None,
    )


@router.get("/{file_id}")
def retrieve(file_id: str, caller: CallerDep, session: SessionDep) -> FileObject:
    """Show one file."""
    return FileObject.of(get_file(session, caller.project.id, file_id))


@router.get("/{file_id}/content", response_class=StreamingResponse)
def content(
    file_id: str, caller: CallerDep, session: SessionDep, storage: StorageDep
) -> StreamingResponse:
    """Download the bytes of a file; a job's result file is plain CSV."""
    file = get_file(session, caller.project.id, file_id)
    return StreamingResponse(
        storage.stream(file.storage_key),
        media_type="application/octet-stream",
        headers={"content-length": str(file.bytes), "x-content-type-options": "nosniff"},
    )


@router.delete("/{file_id}")
def delete(
    file_id: str, request: Request, caller: CustomerDep, session: SessionDep, storage: StorageDep
) -> Deleted:
    """Delete a file. Refused while a job that has not ended uses it."""
    file: File = service.delete_file(session, caller.project.id, file_id)
    after_commit(
        session, partial(service.remove_bytes, request.app.state.sessions, storage, file.sha256)
    )
    return Deleted(id=file.id, object="file")


def _keep(
    request: Request, storage: Storage, file: UploadFile, purpose: str, project_id: str
) -> FileObject:
    with app_transaction(request.app) as session:
        return FileObject.of(
            service.store_file(
                session,
                storage,
                file.file,
                project_id=project_id,
                filename=file.filename or "",
                purpose=purpose,
            )
        )
