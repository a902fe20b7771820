"""Chat over HTTP: who may ask which model, and what becomes of the inference server's answers."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import OpenAI
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import BaseModel, SecretStr

from api.completions.schemas import CompletionRequest
from api.inference.schemas import ChatRequest
from api.inference.service import make_client
from api.moderations.schemas import ModerationRequest
from models.model_version import Gate, ModelVersion, VersionKind
from tests.api.conftest import Place, Tenant
from tests.api.server import serve

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
    """A body that breaks off, or merely ends, after some bytes."""

    def __init__(
        self, error: Exception | None, content: bytes = b'data: {"choices": []}\n\n'
    ) -> None:
        self.error = error
        self.content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content
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

    @pytest.mark.parametrize(
        ("path", "field"),
        [
            (CHAT, '"messages": [{"role": "user", "content": "\\ud800"}]'),
            (
                CHAT,
                '"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}]}]',
            ),
            (CHAT, '"messages": [{"role": "user", "content": "x"}], "stop": "\\ud800"'),
            ("/v1/completions", '"prompt": "\\ud800"'),
            ("/v1/completions", '"prompt": ["\\ud800"]'),
            ("/v1/moderations", '"input": ["\\ud800"]'),
            ("/v1/moderations", '"input": [{"type": "text", "text": "\\ud800"}]'),
        ],
    )
    def test_half_a_character_is_refused(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving, path: str, field: str
    ) -> None:
        response = customer.client.post(path, content=f'{{"model": "{aligned.id}", {field}}}')
        assert response.status_code == 400
        assert serving.asked == []


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

    @pytest.mark.parametrize(
        ("status", "fault", "code"),
        [
            # vLLM's envelope has a number; older ones had none.
            (400, {"error": {"message": "m", "type": "BadRequestError", "code": 400}}, None),
            (
                400,
                {"object": "error", "message": "m", "type": "x", "param": None, "code": 400},
                None,
            ),
            (429, {"error": {"message": "m", "type": "t", "param": "p", "code": "slow"}}, "slow"),
            (422, {"detail": [{"msg": "m"}]}, None),
            (404, {"error": "m"}, None),
        ],
    )
    def test_another_server_s_fault_comes_in_the_envelope(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        status: int,
        fault: dict[str, object],
        code: str | None,
    ) -> None:
        serving.answer = lambda: httpx.Response(status, json=fault, headers={"retry-after": "7"})
        response = ask(customer, aligned.id)
        assert response.status_code == status
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["code"] == (code or "invalid_request")
        assert isinstance(error["message"], str)
        assert response.headers["retry-after"] == "7"

    def test_another_server_s_answer_is_passed_on_whole(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "x", "reasoning": "y", "tool_calls": []},
            "finish_reason": "stop",
            "stop_reason": 7,
            "token_ids": None,
        }
        answer = {**SAID, "choices": [choice], "prompt_logprobs": None, "service_tier": None}
        serving.answer = lambda: httpx.Response(200, json=answer)
        assert ask(customer, aligned.id).json() == answer

    @pytest.mark.parametrize("code", ["serving_busy", "model_unavailable", "judge_failed"])
    def test_what_the_built_in_server_says_of_itself_is_told(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving, code: str
    ) -> None:
        fault = {"error": {"message": "m", "type": "server_error", "param": None, "code": code}}
        serving.answer = lambda: httpx.Response(503, json=fault, headers={"retry-after": "2"})
        for stream in (False, True):
            response = ask(customer, aligned.id, stream=stream)
            assert (response.status_code, response.json()) == (503, fault)
            assert response.headers["retry-after"] == "2"


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

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b'data: {"choices": []}',
            b'data: {"choices": []}\n',
            b'data: {"choices": []}\r\n\r\n',
            b'data: {"choices": []}\n\ndata: {"choi',
            # A model that says the last word says it inside of a string.
            b'data: {"choices": [{"delta": {"content": "\\ndata: [DONE]"}}]}\n\n',
            b'data: {"choices": [{"delta": {"content": "data: [DONE]',
        ],
    )
    def test_wherever_it_breaks_the_events_stay_whole(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving, content: bytes
    ) -> None:
        serving.answer = lambda: httpx.Response(
            200, stream=Broken(httpx.ReadError("gone"), content)
        )
        response = ask(customer, aligned.id, stream=True)
        text = response.text.replace("\r\n", "\n")
        events = [event for event in text.split("\n\n") if event.strip()]
        *_, last = [json.loads(event.removeprefix("data: ")) for event in events]
        assert last["error"]["code"] == "serving_unavailable"

    @pytest.mark.parametrize("cut", range(1, len(SSE)))
    def test_a_stream_may_come_in_any_parts(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving, cut: int
    ) -> None:
        class Parts(httpx.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                yield SSE[:cut]
                yield SSE[cut:]

        serving.answer = lambda: httpx.Response(200, stream=Parts())
        assert ask(customer, aligned.id, stream=True).content == SSE

    def test_an_error_of_the_server_s_ends_a_stream(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        content = b'data: {"error": {"message": "m", "code": 400}}\n\n'
        serving.answer = lambda: httpx.Response(200, content=content)
        assert ask(customer, aligned.id, stream=True).content == content


class TestDeath:
    """A server that dies is told, whatever the client was waiting for; over a real socket."""

    @pytest.mark.parametrize("said", [b"", b'data: {"id": "c", "object": "chat.comp'])
    def test_in_mid_stream(
        self, app: FastAPI, customer: Tenant, aligned: ModelVersion, said: bytes
    ) -> None:
        first = (
            b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
            b'[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
        )
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n"
        with (
            dying_server(head + first + said) as url,
            serve(app) as address,
            OpenAI(
                base_url=f"{address}/v1",
                api_key=customer.token,
                max_retries=0,
                _strict_response_validation=True,
            ) as client,
        ):
            app.state.serving = make_client(url, SecretStr("x"))
            stream = client.chat.completions.create(
                model=aligned.id, messages=[{"role": "user", "content": "x"}], stream=True
            )
            assert next(stream).choices[0].delta.content == "hi"
            with pytest.raises(openai.APIError) as caught:
                next(stream)
        assert caught.value.code == "serving_unavailable"


@contextmanager
def dying_server(said: bytes) -> Iterator[str]:
    """Serve one request on a socket with so many bytes, and die."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def answer() -> None:
            connection, _ = listening.accept()
            connection.recv(65536)
            connection.sendall(said)
            # A reset, as when a process is killed with data still in its socket.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            time.sleep(0.2)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_every_option_of_the_stock_client_is_known() -> None:
    """Each is taken, ignored or refused by name; one that is new is refused as unknown, by name too."""
    options = typing.get_type_hints(CompletionCreateParamsStreaming)
    assert set(options) <= set(ChatRequest.model_fields)


@pytest.mark.parametrize("request_", [ChatRequest, CompletionRequest, ModerationRequest])
def test_the_page_names_every_option(request_: type[BaseModel]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "inference.md").read_text()
    assert [name for name in request_.model_fields if f"`{name}`" not in page] == []
