"""Headers that a dependency wants on the answer, whatever the answer turns out to be.

What FastAPI lets dependencies set reaches neither errors nor streams, so these are put on by a middleware.
Pure ASGI, so that streamed responses pass through untouched.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STATE = "answer_headers"


def add_headers(request: Request, headers: Mapping[str, str]) -> None:
    """Put these headers on the answer to the request."""
    request.scope["state"].setdefault(_STATE, {}).update(headers)


class AnswerHeaders:
    """Puts on what `add_headers` was given."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start" and _STATE in state:
                MutableHeaders(scope=message).update(state[_STATE])
            await send(message)

        await self.app(scope, receive, send_with_headers)
