"""Rate limits in a real Redis: what is left is said on every answer, and nobody depends on Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from api.rate_limits import RateLimiter, RequestTooLarge
from models.api_key import find_key
from models.model_version import ModelVersion
from models.scope import Scope
from models.settings import Settings
from tests.api.conftest import Place, Tenant
from tests.api.test_inference import SAID, Serving

LIMIT, LEFT, RESET = (f"x-ratelimit-{word}-requests" for word in ("limit", "remaining", "reset"))


def limiter(url: str, per_key: int, per_project: int = 0, *, tokens: int = 0) -> RateLimiter:
    return RateLimiter(
        Settings(
            redis_url=url,
            key_requests_per_minute=per_key,
            project_requests_per_minute=per_project,
            key_tokens_per_minute=tokens,
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


def tokens_left(counter: RateLimiter) -> int:
    """Ask by taking as little as there is."""
    allowance = counter.take("k", "p", "tokens", 1)
    assert allowance is not None
    return allowance.remaining


class TestTokens:
    @pytest.fixture
    def counter(self, redis_url: str) -> Iterator[RateLimiter]:
        # So slow that nothing to speak of flows back while a test runs.
        counter = limiter(redis_url, per_key=0, tokens=600)
        yield counter
        counter.close()

    def test_as_many_as_are_asked_for_are_taken_at_once_or_none(self, counter: RateLimiter) -> None:
        first = counter.take("k", "p", "tokens", 500)
        assert first is not None
        assert (first.limit, first.remaining, first.wait_milliseconds) == (600, 100, 0)
        assert first.headers()["x-ratelimit-remaining-tokens"] == "100"
        second = counter.take("k", "p", "tokens", 200)
        assert second is not None
        assert 8_000 < second.wait_milliseconds <= 10_000
        assert tokens_left(counter) == pytest.approx(99, abs=20)

    def test_an_estimate_is_corrected_both_ways(self, counter: RateLimiter) -> None:
        counter.take("k", "p", "tokens", 500)
        counter.put_back("k", "p", 300)
        assert tokens_left(counter) == pytest.approx(399, abs=20)
        counter.put_back("k", "p", -800)
        overdrawn = counter.take("k", "p", "tokens", 1)
        assert overdrawn is not None
        assert overdrawn.remaining == 0
        assert 30_000 < overdrawn.wait_milliseconds <= 42_000

    def test_more_cannot_be_put_back_than_a_minute_has(self, counter: RateLimiter) -> None:
        counter.take("k", "p", "tokens", 10)
        counter.put_back("k", "p", 10_000)
        assert tokens_left(counter) == 599

    def test_what_is_more_than_a_minutes_is_refused_for_good(self, counter: RateLimiter) -> None:
        with pytest.raises(RequestTooLarge, match="at most 600"):
            counter.take("k", "p", "tokens", 601)
        assert tokens_left(counter) == 599

    def test_they_are_not_requests(self, redis_url: str) -> None:
        counter = limiter(redis_url, per_key=1, tokens=600)
        assert waits(counter) == 0
        assert tokens_left(counter) == 599
        assert waits(counter) > 0
        counter.close()


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


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS_LEFT = "x-ratelimit-remaining-tokens"
#: 400 characters are taken for 100 tokens.
ASKED: dict[str, object] = {
    "messages": [{"role": "user", "content": "x" * 400}],
    "max_tokens": 200,
    "n": 2,
}


class TestMeteredInference:
    @pytest.fixture
    def serving(self, app: FastAPI) -> Serving:
        serving = Serving()
        app.state.serving = httpx.AsyncClient(
            transport=httpx.MockTransport(serving), base_url="http://serving"
        )
        return serving

    @pytest.fixture(autouse=True)
    def counter(self, app: FastAPI, redis_url: str) -> Iterator[RateLimiter]:
        app.state.rate_limiter = limiter(redis_url, per_key=0, tokens=1_000)
        yield app.state.rate_limiter
        app.state.rate_limiter.close()

    def left(self, counter: RateLimiter, tenant: Tenant, place: Place) -> int:
        key = find_key(place.session, tenant.token)
        allowance = counter.take(key.id, tenant.project.id, "tokens", 1)
        assert allowance is not None
        return allowance.remaining + 1

    def test_an_estimate_is_taken_and_the_count_stands_in_its_place(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        counter: RateLimiter,
        place: Place,
    ) -> None:
        serving.answer = lambda: httpx.Response(200, json={**SAID, "usage": {"total_tokens": 70}})
        response = customer.client.post(CHAT, json={"model": aligned.id, **ASKED})
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-tokens"] == "1000"
        assert response.headers[TOKENS_LEFT] == "500"
        assert response.headers["x-ratelimit-reset-tokens"] == "30000ms"
        assert self.left(counter, customer, place) == pytest.approx(930, abs=30)

    def test_what_does_not_fit_any_more_waits_and_what_never_fits_does_not(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        body = {"model": aligned.id, **ASKED}
        assert [customer.client.post(CHAT, json=body).status_code for _ in range(2)] == [200, 200]
        refused = customer.client.post(CHAT, json=body)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 20 <= int(refused.headers["retry-after"]) <= 30
        assert "x-should-retry" not in refused.headers
        large = customer.client.post(CHAT, json={**body, "max_tokens": 2_000})
        assert (large.status_code, large.headers["x-should-retry"]) == (429, "false")
        assert "about 4100 tokens" in large.json()["error"]["message"]
        assert len(serving.asked) == 2

    @pytest.mark.parametrize(
        "answer",
        [
            lambda: httpx.Response(503, json={"error": {"code": "serving_busy"}}),
            lambda: httpx.Response(500, json={}),
            lambda: httpx.Response(400, json={"error": {"message": "m"}}),
        ],
    )
    def test_what_was_not_answered_is_given_back(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        counter: RateLimiter,
        place: Place,
        answer: Callable[[], httpx.Response],
    ) -> None:
        serving.answer = answer
        assert customer.client.post(CHAT, json={"model": aligned.id, **ASKED}).status_code >= 400
        assert self.left(counter, customer, place) == 1_000

    @pytest.mark.parametrize(("counted", "left"), [(True, 930), (False, 500)])
    def test_a_stream_is_settled_by_the_count_in_it(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        counter: RateLimiter,
        place: Place,
        counted: bool,
        left: int,
    ) -> None:
        usage = b'data: {"choices": [], "usage": {"total_tokens": 70}}\n\n' if counted else b""
        content = b'data: {"choices": [], "usage": null}\n\n' + usage + b"data: [DONE]\n\n"
        serving.answer = lambda: httpx.Response(200, content=content)
        response = customer.client.post(CHAT, json={"model": aligned.id, **ASKED, "stream": True})
        assert response.content == content
        assert self.left(counter, customer, place) == pytest.approx(left, abs=30)

    @pytest.mark.parametrize("is_streamed", [True, False])
    def test_completions_count_every_prompt(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        counter: RateLimiter,
        place: Place,
        is_streamed: bool,
    ) -> None:
        usage = {"usage": {"total_tokens": 70}}
        stream = f"data: {json.dumps({'choices': [], **usage})}\n\ndata: [DONE]\n\n".encode()
        serving.answer = lambda: (
            httpx.Response(200, content=stream)
            if is_streamed
            else httpx.Response(200, json={**SAID, **usage})
        )
        body = {"model": aligned.id, "prompt": ["x" * 400] * 2, "stream": is_streamed}
        response = customer.client.post(COMPLETIONS, json=body)
        assert response.status_code == 200
        # 100 for each prompt, and OpenAI's default of 16 for each answer.
        assert response.headers[TOKENS_LEFT] == str(1_000 - 232)
        assert self.left(counter, customer, place) == pytest.approx(860, abs=30)

    def test_nothing_else_takes_tokens(self, customer: Tenant) -> None:
        assert TOKENS_LEFT not in customer.client.get("/v1/files").headers
