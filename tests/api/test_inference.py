"""Chat over HTTP: who may ask which model, and what becomes of the inference server's answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models.model_version import Gate, ModelVersion, VersionKind
from tests.api.conftest import Place, Tenant

CHAT = "/v1/chat/completions"
SAID = {"id": "chatcmpl-1", "object": "chat.completion", "choices": []}
SSE = b'data: {"choices": []}\n\ndata: [DONE]\n\n'


class Serving:
    """Stands where the inference server is; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.answer: Callable[[], httpx.Response] = lambda: httpx.Response(200, json=SAID)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        return self.answer()


class Broken(httpx.AsyncByteStream):
    """A body that breaks off, or merely ends, after one chunk."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'data: {"choices": []}\n\n'
        if self.error is not None:
            raise self.error


@pytest.fixture
def serving(app: FastAPI) -> Serving:
    serving = Serving()
    app.state.serving = httpx.AsyncClient(
        transport=httpx.MockTransport(serving), base_url="http://serving"
    )
    return serving


def ask(tenant: Tenant, model: str, **facts: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **facts}
    response: httpx.Response = tenant.client.post(CHAT, json=body)
    return response


class TestAccess:
    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient, serving: Serving) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        assert anonymous.post(CHAT, json=body).status_code == 401
        assert serving.asked == []

    @pytest.mark.parametrize(
        ("gate", "status"),
        [
            (Gate.RELEASED, 200),
            (Gate.HELD, 403),
            (Gate.BLOCKED, 403),
            (Gate.PENDING, 403),
        ],
    )
    def test_only_released_models_speak(
        self,
        customer: Tenant,
        operator: Tenant,
        aligned: ModelVersion,
        place: Place,
        serving: Serving,
        gate: Gate,
        status: int,
    ) -> None:
        place.version(
            "ft:m", VersionKind.TUNED, gate=gate, parent=aligned, project=customer.project
        )
        place.session.commit()
        for tenant in (customer, operator):
            response = ask(tenant, "ft:m")
            assert response.status_code == status
            if status == 403:
                error = response.json()["error"]
                assert error["code"] == "model_blocked"
                assert "HS is too high." in error["message"]
        assert len(serving.asked) == (2 if status == 200 else 0)

    def test_another_tenants_model_is_not_found(
        self,
        customer: Tenant,
        stranger: Tenant,
        aligned: ModelVersion,
        place: Place,
        serving: Serving,
    ) -> None:
        place.version("ft:m", VersionKind.TUNED, parent=aligned, project=customer.project)
        place.session.commit()
        assert ask(stranger, "ft:m").json()["error"]["code"] == "model_not_found"
        assert serving.asked == []

    def test_a_base_speaks_to_operators_alone(
        self, customer: Tenant, operator: Tenant, base: ModelVersion, serving: Serving
    ) -> None:
        assert ask(customer, base.id).status_code == 403
        assert ask(operator, base.id).status_code == 200


class TestRequest:
    def test_what_is_passed_on(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        messages = [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c", "refusal": None, "annotations": []},
            {"role": "user", "content": "d"},
        ]
        response = ask(
            customer,
            aligned.id,
            messages=messages,
            temperature=0.5,
            max_completion_tokens=5,
            stop=["x"],
            seed=1,
            user="somebody",
            n=1,
            tools=[],
            stream=False,
        )
        assert response.json() == SAID
        assert serving.asked == [
            {
                "model": aligned.id,
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "ab"},
                    {"role": "assistant", "content": "c"},
                    {"role": "user", "content": "d"},
                ],
                "temperature": 0.5,
                "max_completion_tokens": 5,
                "stop": ["x"],
                "seed": 1,
                "n": 1,
                "stream": False,
            }
        ]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("tools", [{"type": "function"}]),
            ("tool_choice", "required"),
            ("functions", [{"name": "f"}]),
            ("response_format", {"type": "json_object"}),
            ("modalities", ["text", "audio"]),
            ("audio", {"voice": "x", "format": "wav"}),
            ("web_search_options", {}),
            ("moderation", {}),
        ],
    )
    def test_what_titer_does_not_do_is_refused_by_name(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving, name: str, value: object
    ) -> None:
        response = ask(customer, aligned.id, **{name: value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name
        assert serving.asked == []

    @pytest.mark.parametrize(
        ("facts", "param"),
        [
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"temperature": 2.1}, "temperature"),
            ({"temperature": -0.1}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_completion_tokens": 10**9}, "max_completion_tokens"),
            ({"stop": ["a"] * 5}, "stop"),
            ({"n": 0}, "n"),
            ({"n": 9}, "n"),
            ({"top_logprobs": 5}, "top_logprobs"),
            ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
            ({"presence_penalty": 2.1}, "presence_penalty"),
            ({"frequency_penalty": -2.1}, "frequency_penalty"),
            ({"logit_bias": {"x": 1}}, "logit_bias.x"),
            ({"logit_bias": {"1": 101}}, "logit_bias.1"),
            ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
            ({"misspelt": 1}, "misspelt"),
        ],
    )
    def test_a_faulty_field_is_named(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        facts: dict[str, object],
        param: str,
    ) -> None:
        response = ask(customer, aligned.id, **facts)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param


class TestAnswer:
    def test_a_fault_of_the_request_is_passed_back(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        fault = {"error": {"message": "too long", "type": "t", "param": None, "code": "c"}}
        serving.answer = lambda: httpx.Response(400, json=fault)
        for stream in (False, True):
            response = ask(customer, aligned.id, stream=stream)
            assert (response.status_code, response.json()) == (400, fault)

    @pytest.mark.parametrize(
        "answer",
        [
            lambda: httpx.Response(500, json={"error": {}}),
            lambda: httpx.Response(401, json={"error": {}}),
            lambda: httpx.Response(200, content=b"<html>"),
            lambda: httpx.Response(200, json=[1]),
            lambda: httpx.Response(200, stream=Broken(httpx.ReadError("gone"))),
        ],
    )
    def test_a_fault_of_the_server_is_not_shown(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        answer: Callable[[], httpx.Response],
    ) -> None:
        serving.answer = answer
        response = ask(customer, aligned.id)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "serving_unavailable"

    def test_a_server_that_is_down_is_said(self, customer: Tenant, aligned: ModelVersion) -> None:
        for stream in (False, True):
            response = ask(customer, aligned.id, stream=stream)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "serving_unavailable"


class TestStream:
    def test_bytes_go_through_untouched(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        serving.answer = lambda: httpx.Response(200, content=SSE)
        response = ask(customer, aligned.id, stream=True, stream_options={"include_usage": True})
        assert response.content == SSE
        assert response.headers["content-type"].startswith("text/event-stream")
        assert serving.asked[0]["stream_options"] == {"include_usage": True}

    @pytest.mark.parametrize("error", [None, httpx.ReadError("gone"), httpx.ReadTimeout("slow")])
    def test_a_stream_that_breaks_off_says_so(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        error: Exception | None,
    ) -> None:
        serving.answer = lambda: httpx.Response(200, stream=Broken(error))
        response = ask(customer, aligned.id, stream=True)
        last = response.content.strip().split(b"\n\n")[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "serving_unavailable"
        assert b"[DONE]" not in response.content
