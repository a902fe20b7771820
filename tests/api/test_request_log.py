"""The api's log: a line for each answer, and the request's id on every line, whoever writes it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from structlog.testing import LogCapture

from models.model_version import ModelVersion
from tests.api.conftest import Tenant, upload

Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged, with what is bound where it is."""
    kept = structlog.get_config()["processors"]
    capture = LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries
    structlog.configure(processors=kept)


def test_an_answer_is_one_line_without_the_address(customer: Tenant, lines: Lines) -> None:
    answer = customer.client.get("/v1/fine_tuning/jobs/ftjob-1?secret=1")
    (line,) = lines
    assert line.pop("milliseconds") >= 0
    assert line.pop("key_id").startswith("key-")
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "route": "/v1/fine_tuning/jobs/{job_id}",
        "status": 404,
        "request_id": answer.headers["x-request-id"],
    }


def test_who_has_no_key_is_not_named(anonymous: TestClient, lines: Lines) -> None:
    anonymous.get("/v1/files", headers={"authorization": "Bearer titer-guess"})
    (line,) = lines
    assert "key_id" not in line
    assert "guess" not in str(line)


def test_lines_from_within_name_the_request(
    customer: Tenant, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        # In the thread that runs the endpoint, which has a context of its own.
        structlog.get_logger("api").warning("within")
        raise RuntimeError

    monkeypatch.setattr("api.deps.find_key", break_down)
    answer = customer.client.get("/v1/files")
    assert [line["event"] for line in lines] == ["within", "request_failed", "request"]
    assert {line["request_id"] for line in lines} == {answer.headers["x-request-id"]}


def test_one_line_leads_from_the_request_to_its_job(
    customer: Tenant, aligned: ModelVersion, lines: Lines
) -> None:
    body = {"model": aligned.id, "training_file": upload(customer)}
    answer = customer.client.post("/v1/fine_tuning/jobs", json=body)
    (line,) = [line for line in lines if line["event"] == "doorbell_rung"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["job_ids"], line["heard"]) == ([answer.json()["id"]], 1)


def test_what_machines_ask_all_day_is_for_those_who_debug(
    anonymous: TestClient, lines: Lines
) -> None:
    anonymous.get("/healthz")
    assert [line["log_level"] for line in lines] == ["debug"]
