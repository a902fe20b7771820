"""Who may ask which model, and passing the request on to the inference server.

The server behind trusts this module to have checked key, tenancy and gate. One client is shared by all
requests; a stream's lines go through untouched, except that a stream that breaks off says so.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import httpx
import structlog
from pydantic import SecretStr
from sqlalchemy.orm import Session

from api.errors import envelope
from api.inference.schemas import SamplingOptions
from api.jobs.service import UnsupportedOption, refuse_unreleased
from models.errors import Unavailable
from models.model_version import ModelBlocked, VersionKind, get_version

log = structlog.get_logger(__name__)

CHAT = "/v1/chat/completions"
CONNECT_SECONDS = 5.0
# A request may have to wait for its turn, and the first one loads the model.
READ_SECONDS = 300.0
MAX_CONNECTIONS = 256
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_SENTENCE = 1_000
DONE = b"data: [DONE]"
ERROR = b'data: {"error"'
#: What the built-in server says of itself with a 503; callers are told it as it is.
TOLD = frozenset({"serving_busy", "model_unavailable", "judge_failed"})


class ServingUnavailable(Unavailable):
    """The inference server cannot be reached at the moment. Try again."""

    code = "serving_unavailable"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the inference server answered, for the caller to see."""

    status: int
    body: dict[str, object]
    retry_after: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What is said beside the body."""
        return {"retry-after": self.retry_after} if self.retry_after else {}


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


def check_access(session: Session, request: SamplingOptions, *, project_id: str | None) -> None:
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


async def ask(
    client: httpx.AsyncClient, body: Mapping[str, object], path: str = CHAT
) -> httpx.Response:
    """Send a request on; the body of the answer is still to be read.

    Raises:
        ServingUnavailable: the inference server does not answer.
    """
    try:
        return await client.send(client.build_request("POST", path, json=body), stream=True)
    except httpx.HTTPError as error:
        log.warning("serving_unavailable", kind=type(error).__name__)
        raise ServingUnavailable from error


async def whole(response: httpx.Response) -> Answer:
    """Read an answer that is not streamed.

    Raises:
        ServingUnavailable: it breaks off, is not JSON, or is a fault of the server's own.
    """
    content = bytearray()
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
    if not isinstance(answer, dict):
        log.warning("serving_answered_no_object")
        raise ServingUnavailable
    if response.status_code == 200:
        return Answer(200, answer)
    return _fault(response, answer)


async def blocks(response: httpx.Response) -> AsyncIterator[bytes]:
    """Give a stream in blocks of whole lines; a line that breaks off is dropped.

    Raises:
        httpx.HTTPError: the stream breaks off.
    """
    begun = b""
    try:
        async for chunk in response.aiter_bytes():
            block, newline, begun = (begun + chunk).rpartition(b"\n")
            if newline:
                yield block + newline
            if len(begun) > MAX_ANSWER_BYTES:
                raise httpx.DecodingError("a line is too long")
    finally:
        await response.aclose()


async def stream(response: httpx.Response) -> AsyncIterator[bytes]:
    """Pass a stream through. One that ends too early gets a last chunk that makes clients raise."""
    is_complete, tail = False, b"\n\n"
    try:
        async for block in blocks(response):
            is_complete = is_complete or ends(block)
            tail = (tail + block)[-4:]
            yield block
    except httpx.HTTPError as error:
        log.warning("serving_broke_off", kind=type(error).__name__)
    if not is_complete:
        # An event ends with an empty line; where that was cut away the next would be a part of it.
        is_between = tail.endswith((b"\n\n", b"\r\n\r\n"))
        yield (b"" if is_between else b"\n") + broke_off()


def ends(block: bytes) -> bool:
    """Say whether a block of lines ends a stream, well or with an error of the server's."""
    lines = block.splitlines()
    return any(line.strip() == DONE or line.startswith(ERROR) for line in lines)


def broke_off() -> bytes:
    """Make the event that says that an answer is not whole."""
    fault = envelope(
        "The answer broke off.", type=ServingUnavailable.type, code=ServingUnavailable.code
    )
    return server_sent(fault)


def server_sent(value: object) -> bytes:
    """Make a server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def told(error: object) -> dict[str, object]:
    """Bring a fault of the request, in whichever form a server tells it, into the envelope.

    vLLM's has a number for its code, and in older versions stands at the top of the body.
    """
    facts = error if isinstance(error, dict) else {}
    message, kind, param, code = (facts.get(key) for key in ("message", "type", "param", "code"))
    return envelope(
        str(message or "The inference server refused the request.")[:MAX_SENTENCE],
        type=kind if isinstance(kind, str) else "invalid_request_error",
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else "invalid_request",
    )


def _fault(response: httpx.Response, answer: dict[str, object]) -> Answer:
    status = response.status_code
    error = answer.get("error", answer)
    code = error.get("code") if isinstance(error, dict) else None
    is_own = status == 503 and code in TOLD
    # 401 and 403 would mean that the two parts of the service do not know one another.
    if not is_own and (status in (401, 403) or not 400 <= status < 500):
        log.warning("serving_failed", status=status)
        raise ServingUnavailable
    return Answer(status, told(error), response.headers.get("retry-after"))
