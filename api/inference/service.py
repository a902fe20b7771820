"""Who may ask which model, and passing the request on to the inference server.

The server behind trusts this module to have checked key, tenancy and gate. One client is shared by all
requests; a stream's bytes go through untouched, except that a stream that breaks off says so.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import structlog
from pydantic import SecretStr
from sqlalchemy.orm import Session

from api.errors import envelope
from api.inference.schemas import ChatRequest
from api.jobs.service import UnsupportedOption, refuse_unreleased
from models.errors import Unavailable
from models.model_version import ModelBlocked, VersionKind, get_version

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 5.0
# The built-in server answers one request at a time, and the first one loads the model.
READ_SECONDS = 300.0
MAX_CONNECTIONS = 256
MAX_ANSWER_BYTES = 16 * 1024 * 1024
DONE = b"data: [DONE]"


class ServingUnavailable(Unavailable):
    """The inference server cannot be reached at the moment. Try again."""

    code = "serving_unavailable"


def make_client(url: str, token: SecretStr) -> httpx.AsyncClient:
    """Open the client that all requests share."""
    return httpx.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {token.get_secret_value()}"},
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        # A proxy set for the outside world has no business between two parts of one service.
        trust_env=False,
    )


def check_access(session: Session, request: ChatRequest, *, project_id: str | None) -> None:
    """Let a request pass if its model may be used by this caller (None: an operator).

    Raises:
        ModelNotFound: there is no such model for this caller.
        ModelBlocked: it has not passed the gate, or is a raw base and the caller a customer.
        UnsupportedOption: it asks for something that Titer does not do.
    """
    refused = request.unsupported()
    if refused is not None:
        raise UnsupportedOption(f"The option {refused!r} is not supported.", param=refused)
    version = get_version(session, request.model, project_id=project_id)
    if version.kind == VersionKind.BASE:
        if project_id is not None:
            raise ModelBlocked(
                f"The model {version.id!r} is a base that has not been aligned; "
                "only aligned models are served.",
                param="model",
            )
        return
    refuse_unreleased(version)


async def ask(client: httpx.AsyncClient, request: ChatRequest) -> httpx.Response:
    """Send the request on; the body of the answer is still to be read.

    Raises:
        ServingUnavailable: the inference server does not answer.
    """
    try:
        return await client.send(
            client.build_request("POST", "/v1/chat/completions", json=request.to_serving()),
            stream=True,
        )
    except httpx.HTTPError as error:
        log.warning("serving_unavailable", kind=type(error).__name__)
        raise ServingUnavailable from error


async def whole(response: httpx.Response) -> tuple[int, dict[str, object]]:
    """Read an answer that is not streamed: its status and its JSON.

    Raises:
        ServingUnavailable: it breaks off, is not JSON, or is a fault of the server's own.
    """
    content = b""
    try:
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                raise ServingUnavailable("The inference server's answer is too large.")
        answer = json.loads(content)
    except (httpx.HTTPError, ValueError) as error:
        log.warning("serving_broke_off", kind=type(error).__name__)
        raise ServingUnavailable from error
    finally:
        await response.aclose()
    is_refusal_of_us = response.status_code in (401, 403)
    if not isinstance(answer, dict) or is_refusal_of_us or response.status_code >= 500:
        log.warning("serving_failed", status=response.status_code)
        raise ServingUnavailable
    return response.status_code, answer


async def stream(response: httpx.Response) -> AsyncIterator[bytes]:
    """Pass a stream through. One that ends too early gets a last chunk that makes clients raise."""
    tail = b""
    try:
        async for chunk in response.aiter_bytes():
            tail = (tail + chunk)[-2 * len(DONE) :]
            yield chunk
    except httpx.HTTPError as error:
        log.warning("serving_broke_off", kind=type(error).__name__)
    finally:
        await response.aclose()
    if DONE not in tail:
        fault = envelope(
            "The answer broke off.", type=ServingUnavailable.type, code=ServingUnavailable.code
        )
        yield b"\n\ndata: " + json.dumps(fault).encode() + b"\n\n"
