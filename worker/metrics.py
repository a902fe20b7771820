"""What a worker counts by itself, and the small server where Prometheus reads it.

The process that runs the jobs serves it, from a thread: with `--pool prefork` that is the pool's child, and with
one child, as Titer's workers have, one port is enough. What is known of a worker from outside, such as its GPU's
memory and the job it has, is in the database, and the api tells it (`api.metrics`).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)

log = structlog.get_logger(__name__)

disable_created_metrics()
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

STEP_SECONDS = Histogram(
    "titer_step_seconds",
    "Time from one optimiser step's end to the next one's, measuring and telling included.",
    ["kind"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    registry=REGISTRY,
)
TRAINED_TOKENS = Counter(
    "titer_trained_tokens",
    "Tokens trained in those steps; over their seconds it is the pace.",
    ["kind"],
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "titer_stage_seconds",
    "Time that this worker spent in a stage of a job, once the stage was left.",
    ["kind", "stage"],
    buckets=(1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600),
    registry=REGISTRY,
)
ATTEMPTS = Counter(
    "titer_attempts",
    "Jobs that this worker let go of, by why: carried to their end, or what went wrong.",
    ["kind", "outcome"],
    registry=REGISTRY,
)
HEARTBEAT_FAILURES = Counter(
    "titer_heartbeat_failures",
    "Heartbeats that could not be written because the database was away.",
    registry=REGISTRY,
)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: readers come every few seconds."""


def serve_metrics(*, host: str, port: int, token: str) -> WSGIServer | None:
    """Serve the metrics to whoever sends the token, from a thread; None where the port cannot be had.

    A worker that cannot be watched still works.

    Args:
        host: where to listen.
        port: where to listen; 0 takes a free one.
        token: what readers send as a bearer token.
    """
    try:
        server = make_server(host, port, _guarded(token), _Server, _Quiet)
    except OSError as error:
        log.warning("metrics_not_served", port=port, kind=type(error).__name__)
        return None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _guarded(token: str) -> Callable[..., Iterable[bytes]]:
    give = make_wsgi_app(REGISTRY)
    expected = f"Bearer {token}".encode()

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        sent = str(environ.get("HTTP_AUTHORIZATION", "")).encode()
        if not secrets.compare_digest(sent, expected):
            start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
            return [b""]
        return give(environ, start_response)

    return app
