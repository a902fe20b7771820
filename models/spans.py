"""The part of tracing that knows OpenTelemetry. Only `models.tracing` loads it, and only where tracing is on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from models.tracing import Fact, Span

_HEADER = "traceparent"
#: For all tries of one batch. A process that stops waits as long for a collector that is away, and no longer.
SEND_SECONDS = 3.0


def exporter_to(endpoint: str) -> SpanExporter:
    """Make what sends spans to a collector; headers and certificates are read from `OTEL_*` by the library."""
    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_SECONDS)


class _Open:
    """A span that is under way."""

    def __init__(self, span: api.Span) -> None:
        self.span = span

    def rename(self, name: str) -> None:
        self.span.update_name(name)

    def note(self, facts: Mapping[str, Fact]) -> None:
        self.span.set_attributes(dict(facts))

    def fail(self, kind: str) -> None:
        self.span.set_attribute("error.type", kind)
        self.span.set_status(api.StatusCode.ERROR)

    def end(self) -> None:
        self.span.end()


class Tracing:
    """A provider of spans that is nobody else's: the process's global one is left as it is."""

    def __init__(self, exporter: SpanExporter, *, service: str) -> None:
        """Send spans by a thread of its own, in batches."""
        # What samples, and how much, is read from OTEL_TRACES_SAMPLER by the library.
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("titer")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self,
        name: str,
        facts: Mapping[str, Fact],
        parent: str | None,
        is_server: bool,
        started_ns: int | None,
    ) -> Iterator[Span]:
        """Open a span and make it the current one for the block."""
        below: context.Context | None = None
        if parent:
            below = self._propagator.extract({_HEADER: parent}, context.Context())
        elif is_server:
            # A connection that is kept hands its last request's context on to the next.
            below = context.Context()
        span = self._tracer.start_span(
            name,
            context=below,
            kind=api.SpanKind.SERVER if is_server else api.SpanKind.INTERNAL,
            attributes=dict(facts),
            start_time=started_ns,
        )
        opened = _Open(span)
        token = context.attach(api.set_span_in_context(span))
        try:
            yield opened
        except BaseException as error:
            # The library's own way records the text and the traceback.
            opened.fail(type(error).__name__)
            raise
        finally:
            context.detach(token)
            opened.end()

    def begin(self, name: str, facts: Mapping[str, Fact], started_ns: int | None) -> Span:
        """Begin a span below the current one."""
        return _Open(self._tracer.start_span(name, attributes=dict(facts), start_time=started_ns))

    def traceparent(self) -> str | None:
        """Give the current span for somebody else to go on from."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get(_HEADER)

    def trace_id(self) -> str | None:
        """Give the current trace's id."""
        found = api.get_current_span().get_span_context()
        return api.format_trace_id(found.trace_id) if found.is_valid else None

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
