"""Traces: one request followed through the doorbell into the stages of its job, told to an OpenTelemetry collector.

Off unless `configure_tracing` is given an address, and then nothing of OpenTelemetry is even imported: every
function here does nothing, at the price of one comparison. Spans carry ids, kinds and states. Never a
request's path or body, never an error's text: those hold names and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import structlog

if TYPE_CHECKING:
    from models.spans import Tracing

log = structlog.get_logger(__name__)

Fact = str | int | float | bool


class Span(Protocol):
    """Something that takes its time, while it does."""

    def rename(self, name: str) -> None:
        """Call it what it has turned out to be."""

    def note(self, facts: Mapping[str, Fact]) -> None:
        """Add facts."""

    def fail(self, kind: str) -> None:
        """Mark it as gone wrong: by an error's class or code, never by its text."""

    def end(self) -> None:
        """Say that it is over."""


class _Nothing:
    def rename(self, name: str) -> None: ...

    def note(self, facts: Mapping[str, Fact]) -> None: ...

    def fail(self, kind: str) -> None: ...

    def end(self) -> None: ...


#: What is opened where nothing is traced.
NO_SPAN: Span = _Nothing()
_tracing: Tracing | None = None


def configure_tracing(endpoint: str, *, service: str) -> None:
    """Send spans to the OTLP collector at this address (HTTP); none: trace nothing.

    Call it after the fork in processes that fork: spans are sent by a thread.

    Args:
        endpoint: as in `OTEL_EXPORTER_OTLP_ENDPOINT`: without `/v1/traces`.
        service: the process's name in the traces.
    """
    global _tracing
    if not endpoint:
        return
    try:
        # The name is spelt out here, so that nobody pays for what is off.
        spans = import_module("models.spans")
    except ImportError:
        log.warning("tracing_not_installed", extra="titer[tracing]")
        return
    _tracing = spans.Tracing(spans.exporter_to(endpoint), service=service)


def stop_tracing() -> None:
    """Send what there is to be sent, and trace no more."""
    global _tracing
    if _tracing is not None:
        _tracing.close()
        _tracing = None


@contextmanager
def span(
    name: str,
    facts: Mapping[str, Fact] | None = None,
    *,
    parent: str | None = None,
    is_server: bool = False,
    started_ns: int | None = None,
) -> Iterator[Span]:
    """Trace the block as one span, the current one for what is traced within. An exception marks it as failed.

    Args:
        name: of few kinds: ids are facts.
        facts: ids, kinds, states.
        parent: the `traceparent` to go on from; none: from the current span, if there is one.
        is_server: whether it answers a request; without a parent it begins a trace.
        started_ns: when it began, in Unix nanoseconds, if before now.
    """
    if _tracing is None:
        yield NO_SPAN
        return
    with _tracing.span(name, facts or {}, parent, is_server, started_ns) as opened:
        yield opened


def begin(
    name: str, facts: Mapping[str, Fact] | None = None, *, started_ns: int | None = None
) -> Span:
    """Begin a span below the current one without becoming the current one; its `end` must be called."""
    return NO_SPAN if _tracing is None else _tracing.begin(name, facts or {}, started_ns)


def traceparent() -> str | None:
    """Give the current span as W3C's `traceparent`, for somebody else to go on from."""
    return None if _tracing is None else _tracing.traceparent()


def trace_id() -> str | None:
    """Give the id of the current trace, 32 hex digits."""
    return None if _tracing is None else _tracing.trace_id()
