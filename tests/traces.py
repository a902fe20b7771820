"""Spans kept in memory, where a collector would be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from models import spans, tracing


class Traces:
    """What was traced until somebody looks."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self) -> tuple[ReadableSpan, ...]:
        """Stop tracing and give the spans in the order of their ends."""
        tracing.stop_tracing()
        return self._exporter.get_finished_spans()

    def ended(self) -> dict[str, ReadableSpan]:
        """Stop tracing and give each span by its name; of several of a name the last."""
        return {span.name: span for span in self.all()}


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(spans, "exporter_to", lambda _: exporter)
    tracing.configure_tracing("http://127.0.0.1:1", service="test")
    yield Traces(exporter)
    tracing.stop_tracing()
