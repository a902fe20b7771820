"""A job's trace goes on from the request that made it, through every stage, whoever runs it and when."""

from __future__ import annotations

import pytest
from opentelemetry.trace import StatusCode

from models import tracing
from models.job import JobStatus
from tests.traces import Traces, traces
from tests.worker.toy_provider import ROWS, Provider, lose_at_step
from worker import pipeline

__all__ = ["traces"]

# Each test runs whole jobs.
pytestmark = pytest.mark.long


def test_the_stages_are_below_the_job_and_the_job_below_the_request(
    provider: Provider, traces: Traces
) -> None:
    with tracing.span("request"):
        job_id = provider.finetune(ROWS, screen=False)
    # The request is over, and this may be another day.
    job = provider.run(job_id)
    assert job.status == JobStatus.SUCCEEDED
    found = traces.ended()
    assert set(found) == {"request", "job", "claim", "train", "evaluate", "gate"}
    assert len({span.context.trace_id for span in found.values()}) == 1
    assert found["job"].parent is not None
    assert found["job"].parent.span_id == found["request"].context.span_id
    for stage in ("claim", "train", "evaluate", "gate"):
        span = found[stage]
        assert span.parent is not None
        assert span.parent.span_id == found["job"].context.span_id
        assert (span.attributes or {})["titer.job.id"] == job_id
    assert (found["job"].attributes or {})["titer.job.outcome"] == "carried"
    text = "".join(span.to_json() for span in found.values())
    for row in ROWS:
        assert str(row["prompt"]) not in text


def test_the_attempt_after_a_lost_lease_is_in_the_same_trace(
    provider: Provider, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracing.span("request"):
        job_id = provider.align()
    lose_at_step(provider, monkeypatch, job_id, step=2)
    provider.run(job_id)
    monkeypatch.undo()
    job = provider.run(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
    jobs = [span for span in traces.all() if span.name == "job"]
    assert [(span.attributes or {})["titer.job.attempt"] for span in jobs] == [1, 2]
    assert len({span.context.trace_id for span in jobs}) == 1
    assert jobs[0].status.status_code == StatusCode.ERROR


def test_what_goes_wrong_is_named_and_not_quoted(
    provider: Provider, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("zebra-7719")

    monkeypatch.setattr(pipeline, "train", break_down)
    provider.run(provider.align())
    found = traces.ended()
    for name in ("job", "train"):
        assert found[name].status.status_code == StatusCode.ERROR
        assert (found[name].attributes or {})["error.type"] == "crashed"
    assert "zebra" not in "".join(span.to_json() for span in found.values())
