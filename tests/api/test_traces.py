"""The request's span, the doorbell's below it, and the job that remembers where its trace goes on."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from api.app import create_app
from models.job import Job
from models.model_version import ModelVersion
from models.settings import Settings
from tests.api.conftest import Place, Tenant, upload
from tests.traces import Traces, traces

__all__ = ["traces"]

PATH = "/v1/fine_tuning/jobs"


def test_a_request_that_makes_a_job_is_where_the_job_goes_on_from(
    customer: Tenant, aligned: ModelVersion, place: Place, traces: Traces
) -> None:
    file = upload(customer)
    answer = customer.client.post(PATH, json={"model": aligned.id, "training_file": file})
    assert answer.status_code == 200, answer.text
    job = place.session.get_one(Job, answer.json()["id"])
    found = traces.ended()
    request, doorbell = found[f"POST {PATH}"], found["enqueue"]
    ids = request.context
    assert job.traceparent is not None
    assert job.traceparent.startswith(f"00-{ids.trace_id:032x}-{ids.span_id:016x}-")
    assert request.kind == SpanKind.SERVER
    facts = dict(request.attributes or {})
    assert facts.pop("titer.request.id") == answer.headers["x-request-id"]
    assert facts == {
        "http.request.method": "POST",
        "http.route": PATH,
        "http.response.status_code": 200,
    }
    assert doorbell.parent is not None
    assert doorbell.parent.span_id == ids.span_id
    assert (doorbell.attributes or {})["titer.job.ids"] == job.id


def test_a_client_cannot_choose_the_trace(customer: Tenant, traces: Traces) -> None:
    theirs = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    customer.client.get(PATH, headers={"traceparent": theirs})
    span = traces.ended()[f"GET {PATH}"]
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != "a" * 32


def test_an_address_is_not_told(anonymous: TestClient, traces: Traces) -> None:
    anonymous.get("/v1/secret?secret=secret")
    found = traces.ended()
    assert set(found) == {"GET"}
    assert "secret" not in found["GET"].to_json()


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_what_machines_ask_all_day_is_not_traced(
    anonymous: TestClient, traces: Traces, path: str
) -> None:
    anonymous.get(path)
    assert traces.ended() == {}


def test_without_tracing_a_job_remembers_nothing(
    customer: Tenant, aligned: ModelVersion, place: Place
) -> None:
    body = {"model": aligned.id, "training_file": upload(customer)}
    job_id = customer.client.post(PATH, json=body).json()["id"]
    assert place.session.get_one(Job, job_id).traceparent is None


def test_the_framework_s_own_telemetry_tells_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would, where a library has set the process's global provider.
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    TestClient(FastAPI()).get("/secret")
    assert exporter.get_finished_spans()
    exporter.clear()
    TestClient(create_app(settings)).get("/secret")
    assert exporter.get_finished_spans() == ()


def test_a_service_s_fault_is_marked(
    customer: Tenant, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("zebra-7719")

    monkeypatch.setattr("api.deps.find_key", break_down)
    assert customer.client.get(PATH).status_code == 500
    span = traces.ended()[f"GET {PATH}"]
    assert span.status.status_code == StatusCode.ERROR
    assert "zebra" not in span.to_json()
