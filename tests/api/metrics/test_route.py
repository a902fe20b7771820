"""/metrics: who may read it, and what the api counts by itself."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import Counter, Gauge
from pydantic import SecretStr
from sqlalchemy.orm import sessionmaker

from api.app import create_app
from api.event_stream.service import Slots, TooManyStreams
from api.metrics.counts import (
    DOORBELL_FAILURES,
    OPEN_STREAMS,
    RATE_LIMITED,
    UNCOUNTED,
)
from api.metrics.service import make_registry
from api.queue import Doorbell
from api.rate_limits import RateLimiter
from models.session import make_engine
from models.settings import Settings
from tests.api.conftest import NOWHERE, Tenant

TOKEN = "m" * 32
READER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def _readable(app: FastAPI) -> None:
    app.state.settings = app.state.settings.model_copy(update={"metrics_token": SecretStr(TOKEN)})
    # What was read of another test's database may be kept.
    app.state.metrics = make_registry(app)


@pytest.fixture
def reader(app: FastAPI, _readable: None) -> TestClient:
    return TestClient(app, headers=READER, raise_server_exceptions=False)


class TestReaders:
    def test_without_a_token_there_is_nothing_to_read(self, anonymous: TestClient) -> None:
        answer = anonymous.get("/metrics", headers={"authorization": "Bearer "})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")

    @pytest.mark.parametrize("sent", ["", "Bearer ", f"Bearer {TOKEN}x", TOKEN, "Bearer \xfc"])
    @pytest.mark.usefixtures("_readable")
    def test_who_does_not_know_it_is_refused(self, anonymous: TestClient, sent: str) -> None:
        answer = anonymous.get("/metrics", headers={"authorization": sent.encode("latin-1")})
        assert answer.status_code == 401
        assert "titer_" not in answer.text.replace("titer_metrics", "")

    @pytest.mark.usefixtures("_readable")
    def test_no_api_key_opens_them(self, operator: Tenant) -> None:
        assert operator.client.get("/metrics").status_code == 401

    def test_who_knows_it_reads_them(self, reader: TestClient) -> None:
        answer = reader.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert answer.headers["cache-control"] == "no-store"
        assert "titer_database_up 1.0" in answer.text

    def test_open_metrics_are_written_for_who_prefers_them(self, reader: TestClient) -> None:
        answer = reader.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")

    def test_they_are_no_part_of_the_public_document(self, built_app: FastAPI) -> None:
        assert "/metrics" not in built_app.openapi()["paths"]

    def test_a_database_that_is_away_hides_nothing_else(
        self, reader: TestClient, app: FastAPI
    ) -> None:
        app.state.sessions = sessionmaker(make_engine("postgresql://titer@127.0.0.1:1/none"))
        app.state.metrics = make_registry(app)
        text = reader.get("/metrics").text
        assert "titer_database_up 0.0" in text
        assert "titer_rate_limited_requests_total" in text


def requests(reader: TestClient) -> dict[str, float]:
    """The requests that were counted, by their labels."""
    counted = re.findall(
        r"^titer_http_request_seconds_count{(.+)} (\S+)$", reader.get("/metrics").text, re.MULTILINE
    )
    return {labels: float(count) for labels, count in counted}


class TestRequests:
    @pytest.mark.parametrize(
        ("method", "path", "route", "status"),
        [
            ("GET", "/v1/fine_tuning/jobs/ftjob-secret", "/v1/fine_tuning/jobs/{job_id}", "4xx"),
            ("GET", "/v1/models/a/b/secret", "/v1/models/{model:path}", "4xx"),
            ("GET", "/dashboard/jobs/secret", "/dashboard/jobs/{job_id}", "3xx"),
            ("GET", "/dashboard/static/secret.css", "/dashboard/static/*", "4xx"),
            ("GET", "/dashboard/secret", "/dashboard/*", "4xx"),
            ("PUT", "/v1/files", "/v1/files", "4xx"),
            ("GET", "/secret", "none", "4xx"),
            ("SECRET", "/secret", "none", "4xx"),
        ],
    )
    def test_are_counted_by_template_and_never_by_address(
        self, reader: TestClient, method: str, path: str, route: str, status: str
    ) -> None:
        known = method if method != "SECRET" else "other"
        labels = f'method="{known}",route="{route}",status="{status}"'
        before = requests(reader)
        reader.request(method, path, follow_redirects=False, headers={"authorization": ""})
        counted = requests(reader)
        assert counted[labels] == before.get(labels, 0) + 1
        # Other tests of this process have asked for routes of their own.
        assert "secret" not in str(counted.keys() - before.keys()).lower()

    def test_a_crash_is_counted_as_the_500_that_it_was(self, settings: Settings) -> None:
        app = create_app(settings.model_copy(update={"metrics_token": SecretStr(TOKEN)}))

        @app.get("/broken")
        def broken() -> None:
            raise RuntimeError

        client = TestClient(app, headers=READER, raise_server_exceptions=False)
        client.get("/broken")
        assert requests(client)['method="GET",route="/broken",status="5xx"'] >= 1


def counted(metric: Counter | Gauge) -> float:
    (collected,) = metric.collect()
    return sum(sample.value for sample in collected.samples)


class TestCounts:
    def test_a_broker_that_is_away(self) -> None:
        before = counted(DOORBELL_FAILURES)
        Doorbell(NOWHERE).send(["ftjob-1"])
        assert counted(DOORBELL_FAILURES) == before + 1

    def test_requests_that_were_too_many(self, redis_url: str) -> None:
        limits = {"redis_url": redis_url, "key_requests_per_minute": 1}
        limiter = RateLimiter(NOWHERE.model_copy(update=limits))
        before = counted(RATE_LIMITED)
        for _ in range(3):
            limiter.take("key", "project")
        assert counted(RATE_LIMITED) == before + 2
        limiter.close()

    def test_requests_that_nobody_could_count(self) -> None:
        limiter = RateLimiter(NOWHERE.model_copy(update={"key_requests_per_minute": 1}))
        before = counted(UNCOUNTED)
        for _ in range(3):
            limiter.take("key", "project")
        assert counted(UNCOUNTED) == before + 3

    def test_streams_that_are_open(self) -> None:
        slots, before = Slots(1), counted(OPEN_STREAMS)
        with slots.taken("project"):
            assert counted(OPEN_STREAMS) == before + 1
            with pytest.raises(TooManyStreams), slots.taken("project"):
                pass
        assert counted(OPEN_STREAMS) == before
