"""Bounds on request bodies, by the declared length and by counting what really arrives.

Pure ASGI: it runs before any parser, so that an over-long body is never held in memory or on disk.
"""

from __future__ import annotations

import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import envelope
from models.upload import MAX_PART_BYTES

FILE_PATH = "/v1/files"
PART_PATH = re.compile("/v1/uploads/[^/]+/parts")
# Boundaries, part headers and the form's small fields around the file itself.
MULTIPART_OVERHEAD_BYTES = 64 * 1024
# Refused bodies are read to their end up to here: a client that is cut off while it still writes
# often sees a broken connection in place of the answer.
DRAINED_BYTES = 4 * 1024 * 1024


class BodyLimit:
    """Answers 413 to bodies above the limit of their route."""

    def __init__(self, app: ASGIApp, *, max_file_bytes: int, max_request_bytes: int) -> None:
        self.app = app
        self.max_file_bytes = max_file_bytes
        self.max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, as long as its body stays within the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        shown = self._shown_limit(scope)
        limit = shown + (MULTIPART_OVERHEAD_BYTES if _is_upload(scope) else 0)
        declared = _declared_length(scope)
        if declared is not None and declared > limit:
            await _drain(receive)
            await _refuse(scope, receive, send, shown)
            return
        received = 0
        is_over = has_begun = has_ended = False

        async def counted() -> Message:
            nonlocal received, is_over, has_ended
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                has_ended = not message.get("more_body", False)
                if received > limit:
                    is_over = True
                    # To the parser it looks as if the client had gone, so it stops reading.
                    return {"type": "http.disconnect"}
            elif message["type"] == "http.disconnect":
                has_ended = True
            return message

        async def guarded(message: Message) -> None:
            nonlocal has_begun
            if is_over and not has_begun:
                return
            if message["type"] == "http.response.start":
                has_begun = True
                if not has_ended and declared:
                    await _drain(receive)
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except Exception:
            if not is_over or has_begun:
                raise
        if is_over and not has_begun:
            await _drain(receive)
            await _refuse(scope, receive, send, shown)

    def _shown_limit(self, scope: Scope) -> int:
        if not _is_upload(scope):
            return self.max_request_bytes
        return self.max_file_bytes if scope["path"] == FILE_PATH else MAX_PART_BYTES


def _is_upload(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] == "POST" and (path == FILE_PATH or bool(PART_PATH.fullmatch(path)))


def _declared_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


async def _drain(receive: Receive) -> None:
    left = DRAINED_BYTES
    while left > 0:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))


async def _refuse(scope: Scope, receive: Receive, send: Send, limit: int) -> None:
    response = JSONResponse(
        envelope(f"The body is larger than {limit:,} bytes.", code="body_too_large"),
        status_code=413,
    )
    await response(scope, receive, send)
