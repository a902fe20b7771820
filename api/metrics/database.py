"""The collector that asks the database when Prometheus asks us, and keeps the answer for some seconds.

What it asks is in `api.metrics.readings`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import structlog
from prometheus_client import Metric
from prometheus_client.registry import Collector
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.metrics.readings import gauge, read_all
from models.session import SessionFactory

log = structlog.get_logger(__name__)

KEPT_SECONDS = 10.0
#: Prometheus gives up after ten seconds; the database is not to go on for nobody.
TIMEOUT_MILLISECONDS = 5_000


class DatabaseMetrics(Collector):
    """Many readers cost the database as much as one."""

    def __init__(self, sessions: Callable[[], SessionFactory]) -> None:
        """Read by whatever `sessions` gives at the time."""
        self._sessions = sessions
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._kept_until = 0.0

    def collect(self) -> Iterator[Metric]:
        """Give what is known now, or was some seconds ago."""
        # One reader asks the database; the others wait for its answer.
        with self._lock:
            if time.monotonic() >= self._kept_until:
                self._kept = self._read()
                self._kept_until = time.monotonic() + KEPT_SECONDS
            kept = self._kept
        yield from kept

    def describe(self) -> Iterable[Metric]:
        """Say nothing when registered; by default that would ask the database."""
        return ()

    def _read(self) -> list[Metric]:
        began = time.monotonic()
        try:
            with self._sessions()() as session:
                session.execute(text(f"SET LOCAL statement_timeout = {TIMEOUT_MILLISECONDS}"))
                read = list(read_all(session))
        except SQLAlchemyError as error:
            log.warning("metrics_not_read", kind=type(error).__name__)
            read = []
        return [
            gauge("titer_database_up", "Whether the database answered.", bool(read)),
            gauge(
                "titer_database_read_seconds",
                "Time that reading the metrics from the database took.",
                time.monotonic() - began,
            ),
            *read,
        ]
