"""The small built-in inference server: chat completions on a released model, and the judges behind moderation.

For the sandbox and single machines; GPU nodes put vLLM behind the same address. It stands behind the api,
which knows who may ask for which model; it trusts only the shared token, and looks the version up itself.
Prompts pass through the chat template and stop tokens of `worker.generation`, as in every evaluation.
Requests wait in line; one that is too many is told so at once (503), and one whose client goes is given up.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated
from urllib.parse import urlsplit

import structlog
import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from models.disconnect import unless_gone
from models.errors import DomainError, Unauthorized, Unavailable
from models.model_version import ModelVersion, get_version
from models.safety_set import HEADER, parse_header
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from worker.chat_wire import ChatRequest, Shown, envelope, server_sent
from worker.completion import Begun, Event, Finished, Speaker
from worker.judge import open_judge
from worker.judgements import JudgementRequest, judge_exchanges
from worker.log import configure_worker_logging
from worker.turns import Turns

log = structlog.get_logger(__name__)

#: Requests that are answered or wait for it, before further ones are refused.
CHAT_PLACES, JUDGE_PLACES = 32, 32
RETRY_AFTER_SECONDS = 2
# Streams that still run after so long when the process is told to stop are broken off.
SHUTDOWN_SECONDS = 10


def create_serving(settings: Settings) -> FastAPI:
    """Make the server. Nothing is loaded before the first request."""
    sessions = session_factory(make_engine(settings.database_url, pool_size=4))
    storage = Storage(settings.storage_url)
    speaker = Speaker(storage, settings.cache_dir)
    # Judges have a line of their own: one that asks an endpoint may wait for it for minutes.
    speaking, judging = Turns("speaking", CHAT_PLACES), Turns("judging", JUDGE_PLACES)
    token = settings.serving_token.get_secret_value()
    stopping = threading.Event()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        stopping.set()
        speaking.close()
        judging.close()

    app = FastAPI(
        title="Titer serving", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )

    def check_token(authorization: Annotated[str, Header()] = "") -> None:
        # An unset token refuses everyone: better than serving blocked models to the whole network.
        if not token or not secrets.compare_digest(
            authorization.encode(), f"Bearer {token}".encode()
        ):
            raise Unauthorized

    def lineage(asked: ChatRequest) -> tuple[ModelVersion, ModelVersion]:
        with sessions() as session:
            version = get_version(session, asked.model, project_id=None)
            return version, get_version(session, version.root_id, project_id=None)

    def safety_prefix(asked: JudgementRequest) -> str:
        with sessions() as session:
            return get_version(session, asked.model, project_id=None).safety_prefix

    @app.exception_handler(DomainError)
    def domain_error(_: Request, error: DomainError) -> JSONResponse:
        headers = (
            {"retry-after": str(RETRY_AFTER_SECONDS)} if isinstance(error, Unavailable) else None
        )
        return JSONResponse({"error": envelope(error)}, error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        fault = DomainError(f"{field}: {first['msg']}", param=field)
        return JSONResponse({"error": envelope(fault)}, fault.status_code)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions", dependencies=[Depends(check_token)], response_model=None)
    async def chat(
        request: Request,
        asked: ChatRequest,
        versions: tuple[ModelVersion, ModelVersion] = Depends(lineage),
    ) -> Response:
        wanted = asked.asked()
        answer = _Answer(
            speaking,
            lambda tell, is_gone: speaker.answer(
                *versions, wanted, tell, lambda: is_gone() or stopping.is_set()
            ),
        )
        shown = Shown(asked)
        try:
            if not asked.stream:
                return JSONResponse(shown.whole(await unless_gone(request.receive, answer.all())))
            # Faults of the request come before this, while there still is a status code for them.
            await unless_gone(request.receive, answer.begun())
        except BaseException:
            answer.leave()
            raise
        return StreamingResponse(
            _events(answer, shown), media_type="text/event-stream; charset=utf-8"
        )

    @app.post("/judgements", dependencies=[Depends(check_token)])
    async def judgements(
        asked: JudgementRequest, prefix: str = Depends(safety_prefix)
    ) -> dict[str, object]:
        def judge() -> dict[str, object]:
            spec = parse_header(storage.get(f"{prefix}/{HEADER}")).judge
            return judge_exchanges(open_judge(spec), asked)

        return await asyncio.wrap_future(judging.take(judge))

    return app


class _Answer:
    """One request on its way through the speaking thread, as the event loop sees it."""

    def __init__(
        self,
        turns: Turns,
        work: Callable[[Callable[[Event], None], Callable[[], bool]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._gone = threading.Event()
        self._turn = turns.take(lambda: work(self._tell, self._gone.is_set))
        self._turn.add_done_callback(lambda _: self._tell(None))

    def leave(self) -> None:
        """End the generation, or its waiting."""
        self._gone.set()
        self._turn.cancel()

    async def begun(self) -> None:
        """Wait for the turn; raises what makes the request impossible."""
        async for event in self:
            if isinstance(event, Begun):
                return

    async def all(self) -> list[Event]:
        """Wait for everything."""
        return [event async for event in self]

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            yield event
        self._turn.result()

    def _tell(self, event: Event | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            # The loop is closed: the server stops.
            self._gone.set()


async def _events(answer: _Answer, shown: Shown) -> AsyncIterator[str]:
    is_finished = False
    try:
        for opening in shown.openings():
            yield server_sent(opening)
        async for event in answer:
            is_finished = is_finished or isinstance(event, Finished)
            for chunk in shown.chunks(event):
                yield server_sent(chunk)
        if not is_finished:
            raise RuntimeError("the answer has no end")
    except Exception:
        # A stream that merely ends looks complete to the client; this makes it raise.
        log.exception("stream_broke")
        fault = Unavailable("The model stopped unexpectedly.")
        yield server_sent({"error": envelope(fault)})
    finally:
        answer.leave()
    yield "data: [DONE]\n\n"


def main() -> None:
    """Serve at the address that the settings give the inference server."""
    settings = Settings()
    configure_worker_logging(as_json=settings.log_json, level=settings.log_level)
    address = urlsplit(settings.serving_url)
    uvicorn.run(
        create_serving(settings),
        host=settings.serving_host or address.hostname or "127.0.0.1",
        port=address.port or 8001,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    main()
