"""/v1/files: upload, list, read and delete data sets and results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

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
from api.files.intake import PURPOSES, Content, checked, known_purpose, taking_in
from api.files.schemas import HOUR_SECONDS, MONTH_SECONDS, ExpiresAfter, FileList, FileObject
from api.multipart import Form, InvalidUpload, read_form
from api.schemas import After, Deleted
from models.file import File, get_file
from models.storage import Storage

router = APIRouter(prefix="/v1/files", tags=["files"])

MAX_LISTED = 10_000
# Checking a data set keeps a thread busy for seconds; most threads stay with those who ask for less.
CHECKED_AT_ONCE = CapacityLimiter(8)
EXPIRY = {"expires_after[anchor]": "anchor", "expires_after[seconds]": "seconds"}
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": HOUR_SECONDS,
                            "maximum": MONTH_SECONDS,
                        },
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=FORM)
async def upload(
    request: Request, caller: CustomerDep, storage: StorageDep, settings: SettingsDep
) -> FileObject:
    """Upload a file; with purpose `fine-tune`, a data set in JSON Lines.

    Every row of a data set is checked before the answer. If any is faulty nothing is kept, and
    `error.faults` names the line, the field and the reason of up to a hundred of them.
    """
    # The form is read here and not by FastAPI, so that a wrong key is refused before the bytes are taken.
    intake = taking_in(storage, max_bytes=settings.max_file_bytes)
    async with contextmanager_in_threadpool(intake) as taken:
        form = await read_form(request, file_field="file", write=taken.write)
        wanted = _wanted(form)
    keep = partial(_keep, request, storage, taken.content, wanted, caller.project.id)
    return await to_thread.run_sync(keep, limiter=CHECKED_AT_ONCE)


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


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the form's fields say about its file."""

    filename: str
    purpose: str
    life_seconds: int | None


def _wanted(form: Form) -> _Wanted:
    fields = dict(form.fields)
    purpose = fields.pop("purpose", None)
    if purpose is None:
        raise InvalidUpload("The form has no field `purpose`.", param="purpose")
    expiry = {EXPIRY[name]: fields.pop(name) for name in EXPIRY if name in fields}
    for name in fields:
        raise InvalidUpload(
            f"The field {name[:64]!r} is not supported.", param=name.partition("[")[0][:64]
        )
    return _Wanted(form.filename or "", known_purpose(purpose), _life_seconds(expiry))


def _life_seconds(expiry: dict[str, str]) -> int | None:
    if not expiry:
        return None
    try:
        return ExpiresAfter.model_validate(expiry).seconds
    except ValidationError as error:
        # Told as the fault of any other body is.
        faults = [
            {**fault, "loc": ("body", "expires_after", *fault["loc"])} for fault in error.errors()
        ]
        raise RequestValidationError(faults, body={"expires_after": expiry}) from error


def _keep(
    request: Request, storage: Storage, content: Content, wanted: _Wanted, project_id: str
) -> FileObject:
    with (
        checked(storage, content, wanted.purpose) as good,
        app_transaction(request.app) as session,
    ):
        return FileObject.of(
            service.store_file(
                session,
                storage,
                good,
                project_id=project_id,
                filename=wanted.filename,
                purpose=wanted.purpose,
                life_seconds=wanted.life_seconds,
            )
        )
