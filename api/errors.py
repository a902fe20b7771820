"""Every error as one envelope: {"error": {"message", "type", "param", "code", ...}}.

OpenAI's clients read that shape; FastAPI's own `detail` would reach them as an error without words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from models.errors import Conflict, DomainError, Unauthorized, Unavailable

log = structlog.get_logger(__name__)

MAX_SHOWN_FAULTS = 5
MAX_SENTENCE = 300


def envelope(
    message: str,
    *,
    type: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    extra: dict[str, object] | None = None,
) -> dict[str, object]:
    """Make the body of an error."""
    return {
        "error": {**(extra or {}), "message": message, "type": type, "param": param, "code": code}
    }


def render(error: DomainError) -> JSONResponse:
    """Make the response to a domain error."""
    headers = dict(error.headers())
    if isinstance(error, Conflict):
        # The stock client retries every 409, and waiting does not change a state.
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(
        envelope(
            error.message,
            type=error.type,
            param=error.param,
            code=error.code,
            extra=error.extra(),
        ),
        status_code=error.status_code,
        headers=headers,
    )


def install_error_handlers(app: FastAPI) -> None:
    """Make the app answer every expected error in the envelope."""

    @app.exception_handler(DomainError)
    async def domain_error(_: Request, error: DomainError) -> JSONResponse:
        if isinstance(error, Unavailable):
            log.warning("part_unavailable", code=error.code)
        return render(error)

    @app.exception_handler(RequestValidationError)
    async def invalid_body(_: Request, error: RequestValidationError) -> JSONResponse:
        message, param = sentence(error.errors(), error.body)
        return JSONResponse(envelope(message, param=param, code="invalid_request"), status_code=400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        match error.status_code:
            case 404:
                message, code = "There is nothing at this address.", "unknown_url"
            case 405:
                message, code = f"{request.method} is not possible here.", "method_not_allowed"
            case _:
                message, code = str(error.detail), "invalid_request"
        return JSONResponse(
            envelope(message, code=code), status_code=error.status_code, headers=error.headers
        )

    @app.exception_handler(DataError)
    async def unstorable(_: Request, __: DataError) -> JSONResponse:
        # Nearly always a NUL character, which PostgreSQL's text cannot hold.
        return render(
            DomainError("The request contains a character or number that cannot be stored.")
        )

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(PoolTimeout)
    async def database_down(_: Request, error: SQLAlchemyError) -> JSONResponse:
        log.error("database_unavailable", kind=type(error).__name__)
        return render(Unavailable("The database is not reachable at the moment. Try again."))


def field_path(fault: dict[str, Any], body: object) -> str:
    """Name the field that a validation fault is about, as the caller wrote it.

    Pydantic's location also names the branches of unions, which no caller has heard of. Walking the body
    along it tells the two apart.
    """
    source, *parts = fault["loc"]
    if source != "body":
        return ".".join(str(part) for part in parts)[:MAX_SENTENCE]
    path = ""
    here = body
    for part in parts:
        if isinstance(here, dict) and (
            part in here or (fault["type"] == "missing" and part == parts[-1])
        ):
            path += f".{part}" if path else str(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path += f"[{part}]"
            here = here[part]
    return path[:MAX_SENTENCE]


def sentence(faults: Sequence[Any], body: object) -> tuple[str, str | None]:
    """Say what is wrong with a request, field by field; also give the first field."""
    by_field: dict[str, list[str]] = {}
    for fault in faults:
        reason = str(fault["msg"])[:MAX_SENTENCE]
        reasons = by_field.setdefault(field_path(fault, body), [])
        if reason not in reasons:
            reasons.append(reason)
    shown = [
        (f"{field}: " if field else "") + ", or ".join(reasons)
        for field, reasons in list(by_field.items())[:MAX_SHOWN_FAULTS]
    ]
    more = len(by_field) - len(shown)
    text = "; ".join(shown) + (f"; and {more} more" if more > 0 else "") + "."
    return text, next(iter(by_field), None) or None
