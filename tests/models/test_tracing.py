"""Traces: what goes along, what is told, and that nothing is where they are off."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from models import tracing
from tests.traces import Traces, traces

__all__ = ["traces"]

SECRET = "zebra-7719"


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


class TestOn:
    def test_what_is_traced_within_is_below(self, traces: Traces) -> None:
        with tracing.span("outer", is_server=True):
            tracing.begin("inner", {"titer.job.id": "ftjob-1"}).end()
        found = traces.ended()
        assert parent_of(found["inner"]) == found["outer"].context.span_id
        assert found["outer"].kind == SpanKind.SERVER
        assert found["inner"].attributes == {"titer.job.id": "ftjob-1"}
        assert found["inner"].resource.attributes["service.name"] == "test"

    def test_another_process_goes_on_from_the_header(self, traces: Traces) -> None:
        with tracing.span("request"):
            kept = tracing.traceparent()
            trace_id = tracing.trace_id()
        assert kept is not None
        with tracing.span("job", parent=kept, started_ns=1):
            assert tracing.trace_id() == trace_id
        found = traces.ended()
        assert parent_of(found["job"]) == found["request"].context.span_id
        assert found["job"].start_time == 1

    def test_a_request_begins_a_trace_whatever_its_connection_served_before(
        self, traces: Traces
    ) -> None:
        with tracing.span("earlier", is_server=True), tracing.span("request", is_server=True):
            pass
        found = traces.ended()
        assert found["request"].parent is None
        assert found["request"].context.trace_id != found["earlier"].context.trace_id

    @pytest.mark.parametrize("header", [None, "", "nonsense", "00-0-0-00"])
    def test_a_header_that_is_none_begins_a_trace(self, traces: Traces, header: str | None) -> None:
        with tracing.span("job", parent=header):
            pass
        assert parent_of(traces.ended()["job"]) is None

    def test_an_error_is_told_by_its_class_and_never_by_its_text(self, traces: Traces) -> None:
        with pytest.raises(ValueError, match=SECRET), tracing.span("job"):
            raise ValueError(SECRET)
        found = traces.ended()["job"]
        assert found.status.status_code == StatusCode.ERROR
        assert (found.attributes or {})["error.type"] == "ValueError"
        assert not found.events
        assert SECRET not in found.to_json()


class TestOff:
    def test_everything_does_nothing(self) -> None:
        tracing.configure_tracing("", service="test")
        with tracing.span("request") as span:
            span.note({"a": 1})
            span.rename("b")
            span.fail("c")
            tracing.begin("d").end()
            assert tracing.traceparent() is None
            assert tracing.trace_id() is None

    def test_a_missing_library_is_told_and_traces_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, "models.spans", raising=False)
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
        tracing.configure_tracing("http://127.0.0.1:4318", service="test")
        assert tracing.traceparent() is None
