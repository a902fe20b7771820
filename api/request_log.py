"""The outermost middleware: what is known of every request, whatever became of it, and no bare crash.

A request id on the answer and on every log line, one line when the answer begins, its latency for the metrics, and a
span where requests are traced. None of them says the address itself, only the route's template.

Pure ASGI, so that streamed responses pass through untouched.
"""

from __future__ import annotations

import secrets
import time

import structlog
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import envelope
from api.metrics.counts import observe_request
from models import tracing

log = structlog.get_logger(__name__)

_KEY_ID = "key_id"
#: Asked every few seconds by machines: neither traced nor, at the usual level, logged.
UNREMARKABLE = frozenset({"/healthz", "/metrics"})
#: FastAPI's own would tell whole addresses and the texts of errors; ours is `models.tracing`.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}


def note_key(request: Request, key_id: str) -> None:
    """Let the request's log line name the API key. Bound by a dependency it would be lost with its thread."""
    request.scope["state"][_KEY_ID] = key_id


def route_of(scope: Scope) -> str | None:
    """Give the template of the route that took a request; none: no route has this address."""
    mounted: str = scope.get("root_path", "").removeprefix(scope.get("app_root_path", ""))
    path: str | None = getattr(scope.get("route"), "path", None)
    if path is not None:
        return mounted + path
    return f"{mounted}/*" if mounted else None


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
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            if scope["path"] in UNREMARKABLE:
                await _Exchange(scope, send, request_id, tracing.NO_SPAN).run(self.app, receive)
                return
            facts = {"titer.request.id": request_id}
            with tracing.span("request", facts, is_server=True) as span:
                await _Exchange(scope, send, request_id, span).run(self.app, receive)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, request_id: str, span: tracing.Span) -> None:
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._span = span
        self._began = time.monotonic()
        self._status = 0

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        scope = self._scope
        scope.setdefault("state", {})
        try:
            await app(scope, receive, self._send_marked)
        except Exception:
            log.exception("request_failed", method=scope["method"])
            if self._status:
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
            await response(scope, receive, self._send_marked)

    async def _send_marked(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            seconds = time.monotonic() - self._began
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers["openai-processing-ms"] = str(int(seconds * 1000))
            self._tell(seconds)
        await self._send(message)

    def _tell(self, seconds: float) -> None:
        scope, status = self._scope, self._status
        method, route = scope["method"], route_of(scope)
        observe_request(route=route, method=method, status=status, seconds=seconds)
        tell = log.debug if scope["path"] in UNREMARKABLE else log.info
        key = {_KEY_ID: scope["state"][_KEY_ID]} if _KEY_ID in scope["state"] else {}
        tell(
            "request",
            method=method,
            route=route,
            status=status,
            milliseconds=round(seconds * 1000, 1),
            **key,
        )
        self._span.rename(f"{method} {route}" if route else method)
        self._span.note(
            {
                "http.request.method": method,
                "http.response.status_code": status,
                **({"http.route": route} if route else {}),
            }
        )
        if status >= 500:
            self._span.fail(str(status))
