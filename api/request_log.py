"""The outermost middleware: a request id on every response and log line, and no bare crash.

Pure ASGI, so that streamed responses pass through untouched.
"""

from __future__ import annotations

import secrets
import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import envelope

log = structlog.get_logger(__name__)


class RequestLog:
    """Binds `request_id` for the time of one request, and answers what nobody else caught."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = "req_" + secrets.token_hex(16)
        began = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(int((time.monotonic() - began) * 1000))
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                log.exception("request_failed", method=scope["method"])
                if status:
                    # The answer has begun; breaking the connection is all that is left to tell.
                    raise
                response = JSONResponse(
                    envelope(
                        "The server had an error. Name the request id when you report it.",
                        type="server_error",
                        code="server_error",
                    ),
                    status_code=500,
                )
                await response(scope, receive, send_with_id)
