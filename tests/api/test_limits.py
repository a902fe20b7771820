"""Bodies are bounded by what they declare and by what they turn out to be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from api import limits
from api.limits import MULTIPART_OVERHEAD_BYTES, BodyLimit
from models.settings import Settings
from tests.api.conftest import Tenant, rows

LIMIT = 1000


async def counting(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that says how long the body was."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


async def not_reading(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=401)(scope, receive, send)


def send_body(app: object, path: str, chunks: Iterator[bytes] | bytes) -> httpx.Response:
    limited = BodyLimit(app, max_file_bytes=LIMIT * 10, max_request_bytes=LIMIT)  # type: ignore[arg-type]

    async def go() -> httpx.Response:
        async def stream() -> object:
            for chunk in chunks:
                yield chunk

        transport = httpx.ASGITransport(limited)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            content = chunks if isinstance(chunks, bytes) else stream()
            return await client.post(path, content=content)  # type: ignore[arg-type]

    return anyio.run(go)


@pytest.mark.parametrize("is_declared", [True, False])
@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/x", LIMIT),
        ("/v1/files", 10 * LIMIT + MULTIPART_OVERHEAD_BYTES),
        ("/v1/files/", LIMIT),
        ("/v1/uploads", LIMIT),
        ("/v1/uploads/upload_x/parts", 20 * LIMIT + MULTIPART_OVERHEAD_BYTES),
        ("/v1/uploads/upload_x/parts/more", LIMIT),
    ],
)
def test_the_limit_itself_passes_and_one_byte_more_does_not(
    path: str, limit: int, is_declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PART_BYTES", 20 * LIMIT)
    for size, status in ((limit, 200), (limit + 1, 413)):
        body = b"x" * size if is_declared else iter([b"x" * (size - 1), b"x"])
        response = send_body(counting, path, body)
        assert response.status_code == status
        if status == 413:
            assert response.json()["error"]["code"] == "body_too_large"


def test_a_declared_length_that_is_a_lie_does_not_help() -> None:
    sent: list[Message] = []
    messages: list[Message] = [
        {"type": "http.request", "body": b"x" * (LIMIT + 1), "more_body": False}
    ]

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/x",
        "headers": [(b"content-length", b"5")],
    }
    limited = BodyLimit(counting, max_file_bytes=LIMIT, max_request_bytes=LIMIT)
    anyio.run(partial(limited, scope, receive, send))
    assert sent[0]["status"] == 413


def test_an_early_refusal_is_left_as_it_is() -> None:
    assert send_body(not_reading, "/x", b"x" * 10).status_code == 401
    assert send_body(not_reading, "/x", iter([b"x" * 10])).status_code == 401


def test_the_app_bounds_uploads_and_other_requests_apart(
    customer: Tenant, settings: Settings
) -> None:
    upload = customer.client.post(
        "/v1/files",
        data={"purpose": "fine-tune"},
        files={"file": ("a", rows() + b" " * settings.max_request_bytes)},
    )
    assert upload.status_code == 200
    response = customer.client.post(
        "/v1/fine_tuning/jobs", content=b" " * (settings.max_request_bytes + 1)
    )
    assert response.status_code == 413
    assert response.headers["x-request-id"]
