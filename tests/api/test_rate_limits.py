"""Rate limits in a real Redis: what is left is said on every answer, and nobody depends on Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from api.rate_limits import RateLimiter
from models.api_key import Scope
from models.settings import Settings
from tests.api.conftest import Place, Tenant

LIMIT, LEFT, RESET = (f"x-ratelimit-{word}-requests" for word in ("limit", "remaining", "reset"))


def limiter(url: str, per_key: int, per_project: int = 0) -> RateLimiter:
    return RateLimiter(
        Settings(
            redis_url=url,
            key_requests_per_minute=per_key,
            project_requests_per_minute=per_project,
        )
    )


def waits(counter: RateLimiter, key: str = "k", project: str = "p") -> int:
    allowance = counter.take(key, project)
    assert allowance is not None
    return allowance.wait_milliseconds


class TestBuckets:
    def test_a_minutes_requests_pass_and_the_next_waits_for_its_share_of_the_minute(
        self, redis_url: str
    ) -> None:
        counter = limiter(redis_url, per_key=6)
        for left in range(5, -1, -1):
            allowance = counter.take("k", "p")
            assert allowance is not None
            assert (allowance.limit, allowance.remaining) == (6, left)
            assert allowance.wait_milliseconds == 0
            assert allowance.reset_milliseconds == pytest.approx((6 - left) * 10_000, abs=2000)
        assert 8_000 < waits(counter) <= 10_000
        counter.close()

    def test_a_refused_request_is_not_counted(self, redis_url: str) -> None:
        counter = limiter(redis_url, per_key=1)
        assert waits(counter) == 0
        first, second = waits(counter), waits(counter)
        assert 0 < second <= first <= 60_000
        counter.close()

    def test_it_fills_up_again(self, redis_url: str) -> None:
        counter = limiter(redis_url, per_key=1_200)
        for _ in range(1_200):
            counter.take("k", "p")
        wait = waits(counter)
        if wait:
            assert wait <= 50
            time.sleep(wait / 1000 + 0.01)
            assert waits(counter) == 0
        counter.close()

    def test_keys_have_buckets_of_their_own_and_share_their_projects(self, redis_url: str) -> None:
        counter = limiter(redis_url, per_key=2, per_project=3)
        assert [waits(counter, key) > 0 for key in "aaabb"] == [False, False, True, False, True]
        # The project's bucket was the empty one, so b's own was not touched.
        assert waits(counter, "b", "other project") == 0
        counter.close()

    def test_the_scarcer_limit_is_told(self, redis_url: str) -> None:
        counter = limiter(redis_url, per_key=5, per_project=3)
        allowance = counter.take("k", "p")
        assert allowance is not None
        assert (allowance.limit, allowance.remaining) == (3, 2)
        counter.close()

    def test_many_at_once_do_not_pass_together(self, redis_url: str) -> None:
        counter = limiter(redis_url, per_key=10)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: waits(counter), range(40)))
        assert results.count(0) == 10
        counter.close()

    def test_nothing_is_kept_for_ever(self, redis_url: str) -> None:
        counter = limiter(redis_url, per_key=2, per_project=2)
        counter.take("k", "p")
        with redis.Redis.from_url(redis_url) as client:
            names = list(client.scan_iter("titer:*"))
            assert len(names) == 2
            assert all(0 < int(client.ttl(name)) <= 120 for name in names)  # type: ignore[arg-type]
        counter.close()

    def test_a_limit_that_was_lowered_holds_at_once(self, redis_url: str) -> None:
        limiter(redis_url, per_key=100).take("k", "p")
        counter = limiter(redis_url, per_key=1)
        assert [waits(counter) > 0 for _ in range(2)] == [False, True]

    def test_zero_is_no_limit_and_asks_nobody(self) -> None:
        with capture_logs() as logs:
            assert limiter("redis://127.0.0.1:1/0", per_key=0).take("k", "p") is None
        assert logs == []


class TestWithoutRedis:
    def test_requests_pass_fast_and_one_warning_is_logged(self) -> None:
        counter = limiter("redis://127.0.0.1:1/0", per_key=1)
        began = time.monotonic()
        with capture_logs() as logs:
            assert [counter.take("k", "p") for _ in range(200)] == [None] * 200
        assert time.monotonic() - began < 2
        assert [line["event"] for line in logs] == ["rate_limits_not_counted"]

    def test_it_is_used_again_when_it_is_back(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counter = limiter(redis_url, per_key=1)
        with redis.Redis.from_url(redis_url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        monkeypatch.setattr("api.rate_limits.REST_SECONDS", 0.0)
        assert any(counter.take("k", "p") is not None for _ in range(3))
        counter.close()


@pytest.fixture
def counted(app: FastAPI, redis_url: str) -> Iterator[FastAPI]:
    app.state.rate_limiter = limiter(redis_url, per_key=3, per_project=5)
    yield app
    app.state.rate_limiter.close()


class TestAnswers:
    def test_every_answer_to_a_key_carries_the_headers(
        self, counted: FastAPI, customer: Tenant
    ) -> None:
        seen = [
            customer.client.get("/v1/files"),
            customer.client.get("/v1/files/file-x"),
            customer.client.get("/v1/keys"),
        ]
        assert [response.status_code for response in seen] == [200, 404, 403]
        assert [response.headers[LEFT] for response in seen] == ["2", "1", "0"]
        assert all(response.headers[LIMIT] == "3" for response in seen)
        assert all(response.headers[RESET].endswith("ms") for response in seen)

    def test_one_too_many_is_refused_with_the_time_to_wait(
        self, counted: FastAPI, customer: Tenant, stranger: Tenant
    ) -> None:
        for _ in range(3):
            assert customer.client.get("/v1/files").status_code == 200
        response = customer.client.get("/v1/files")
        assert response.status_code == 429
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("rate_limit_exceeded", None)
        assert 1 <= int(response.headers["retry-after"]) <= 20
        assert response.headers[LEFT] == "0"
        assert "x-should-retry" not in response.headers
        assert stranger.client.get("/v1/files").status_code == 200

    def test_the_keys_of_a_project_share_its_limit(
        self, counted: FastAPI, customer: Tenant, place: Place
    ) -> None:
        second = place.key(customer.project, Scope.CUSTOMER)
        place.session.commit()
        other = TestClient(counted, headers={"authorization": f"Bearer {second}"})
        assert [customer.client.get("/v1/files").status_code for _ in range(3)] == [200] * 3
        assert [other.get("/v1/files").status_code for _ in range(3)] == [200, 200, 429]

    def test_who_sends_no_valid_key_is_told_nothing(
        self, counted: FastAPI, anonymous: TestClient
    ) -> None:
        response = anonymous.get("/v1/files", headers={"authorization": "Bearer x"})
        assert response.status_code == 401
        assert LIMIT not in response.headers

    def test_without_redis_there_are_no_headers(self, app: FastAPI, customer: Tenant) -> None:
        app.state.rate_limiter = limiter("redis://127.0.0.1:1/0", per_key=1)
        response = customer.client.get("/v1/files")
        assert response.status_code == 200
        assert LIMIT not in response.headers
