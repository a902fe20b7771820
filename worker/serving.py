"""The small built-in inference server: chat completions on a released model, one request at a time.

For the sandbox and single machines; GPU nodes put vLLM behind the same address. It stands behind the api,
which knows who may ask for which model; it trusts only the shared token, and looks the version up itself.
Prompts pass through the chat template and stop tokens of `worker.generation`, as in every evaluation.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

import structlog
import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from models.errors import DomainError, Unauthorized
from models.log import configure_logging
from models.model_version import get_version
from models.rows import Message
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from worker.completion import Asked, Completion, Speaker

log = structlog.get_logger(__name__)


class ChatMessage(BaseModel):
    """One turn, as the api passes it on."""

    role: Literal["system", "user", "assistant"]
    content: str


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The part of OpenAI's request that the built-in server carries out; the api checks the rest."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    # Greedy unless asked otherwise, as in every evaluation: the served model is the measured one.
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: list[str] | str | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def asked(self) -> Asked:
        """Give what the model is asked for, free of the wire's spellings."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Asked(
            messages=tuple(Message(m.role, m.content) for m in self.messages),
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            stop=tuple(word for word in stop if word),
            seed=self.seed,
        )


def create_serving(settings: Settings) -> FastAPI:
    """Make the server. Nothing is loaded before the first request."""
    sessions = session_factory(make_engine(settings.database_url, pool_size=2))
    speaker = Speaker(Storage(settings.storage_url), settings.cache_dir)
    token = settings.serving_token.get_secret_value()
    app = FastAPI(title="Titer serving", docs_url=None, redoc_url=None, openapi_url=None)

    def check_token(authorization: Annotated[str, Header()] = "") -> None:
        # An unset token refuses everyone: better than serving blocked models to the whole network.
        if not token or not secrets.compare_digest(authorization, f"Bearer {token}"):
            raise Unauthorized

    @app.exception_handler(DomainError)
    def domain_error(_: Request, error: DomainError) -> JSONResponse:
        return JSONResponse({"error": _envelope(error)}, error.status_code)

    @app.exception_handler(RequestValidationError)
    def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        fault = DomainError(f"{field}: {first['msg']}", param=field)
        return JSONResponse({"error": _envelope(fault)}, fault.status_code)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions", dependencies=[Depends(check_token)], response_model=None)
    def chat(request: ChatRequest) -> JSONResponse | StreamingResponse:
        with sessions() as session:
            version = get_version(session, request.model, project_id=None)
            root = get_version(session, version.root_id, project_id=None)
        # Faults of the request are found here, while there still is a status code to say so with.
        completion = speaker.prepare(version, root, request.asked())
        shown = _Shown(request)
        if request.stream:
            return StreamingResponse(
                shown.stream(completion), media_type="text/event-stream; charset=utf-8"
            )
        return JSONResponse(shown.whole(completion))

    return app


class _Shown:
    """OpenAI's response objects for one request."""

    def __init__(self, request: ChatRequest) -> None:
        self._id = "chatcmpl-" + secrets.token_hex(12)
        self._created = int(time.time())
        self._model = request.model
        self._with_usage = bool(request.stream_options and request.stream_options.include_usage)

    def whole(self, completion: Completion) -> dict[str, object]:
        text = "".join(completion.pieces())
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": completion.finish_reason,
            "logprobs": None,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": completion.usage()}

    def stream(self, completion: Completion) -> Iterator[str]:
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            for piece in completion.pieces():
                yield self._chunk({"content": piece})
            yield self._chunk({}, completion.finish_reason)
            if self._with_usage:
                head = self._head("chat.completion.chunk")
                yield _event({**head, "choices": [], "usage": completion.usage()})
        except Exception:
            # A stream that merely ends looks complete to the client; this makes it raise.
            log.exception("stream_broke")
            yield _event({"error": _envelope(DomainError("The model stopped unexpectedly."))})
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice]})


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _envelope(error: DomainError) -> dict[str, object]:
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }


def main() -> None:
    """Serve at the address that the settings give the inference server."""
    settings = Settings()
    configure_logging(as_json=settings.log_json, level=settings.log_level)
    address = urlsplit(settings.serving_url)
    uvicorn.run(
        create_serving(settings),
        host=settings.serving_host or address.hostname or "127.0.0.1",
        port=address.port or 8001,
        log_config=None,
        access_log=False,
    )


if __name__ == "__main__":
    main()
