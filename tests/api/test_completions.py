"""Legacy completions: what each prompt becomes, and what becomes of the chats' answers."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models.model_version import Gate, ModelVersion, VersionKind
from tests.api.conftest import Place, Tenant

COMPLETIONS = "/v1/completions"
USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def chat(text: str, **facts: object) -> httpx.Response:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **facts}
    return httpx.Response(200, json={"choices": [choice], "usage": USAGE})


def events(*values: object, is_complete: bool = True) -> httpx.Response:
    sent = "".join(f"data: {json.dumps(value)}\n\n" for value in values)
    return httpx.Response(200, text=sent + ("data: [DONE]\n\n" if is_complete else ""))


def chunk(text: str | None, **facts: object) -> dict[str, object]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None, **facts}]}


class Serving:
    """Stands where the inference server is and gives its answers in turn, the last one for ever."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.answers: list[Callable[[], httpx.Response]] = [lambda: chat("hi")]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        return answer()


@pytest.fixture
def serving(app: FastAPI) -> Serving:
    serving = Serving()
    app.state.serving = httpx.AsyncClient(
        transport=httpx.MockTransport(serving), base_url="http://serving"
    )
    return serving


def complete(tenant: Tenant, model: str, prompt: object = "p", **facts: object) -> httpx.Response:
    body = {"model": model, "prompt": prompt, **facts}
    response: httpx.Response = tenant.client.post(COMPLETIONS, json=body)
    return response


def told(response: httpx.Response) -> list[dict[str, object]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


class TestAccess:
    def test_the_same_rules_as_for_chat(
        self,
        anonymous: TestClient,
        customer: Tenant,
        stranger: Tenant,
        aligned: ModelVersion,
        place: Place,
        serving: Serving,
    ) -> None:
        assert anonymous.post(COMPLETIONS, json={"model": "m", "prompt": "p"}).status_code == 401
        for name, gate in (("ft:held", Gate.HELD), ("ft:good", Gate.RELEASED)):
            place.version(
                name, VersionKind.TUNED, gate=gate, parent=aligned, project=customer.project
            )
        place.session.commit()
        assert complete(customer, "ft:held").status_code == 403
        assert complete(customer, aligned.root_id).status_code == 403
        assert complete(stranger, "ft:good").status_code == 404
        assert serving.asked == []
        assert complete(customer, "ft:good").status_code == 200


class TestWhole:
    def test_a_prompt_becomes_a_turn(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        body = complete(
            customer, aligned.id, logprobs=0, stop="x", seed=1, user="u", suffix="", best_of=1
        ).json()
        assert serving.asked == [
            {
                "model": aligned.id,
                "messages": [{"role": "user", "content": "p"}],
                "temperature": 0.0,
                "max_tokens": 16,
                "stop": "x",
                "seed": 1,
                "logprobs": True,
                "top_logprobs": 0,
            }
        ]
        assert body["id"].startswith("cmpl-")
        assert body["usage"] == USAGE
        empty = {"tokens": [], "token_logprobs": [], "top_logprobs": None, "text_offset": []}
        assert body["choices"] == [
            {"index": 0, "text": "hi", "finish_reason": "stop", "logprobs": empty}
        ]

    def test_offsets_count_the_characters_before_a_token(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        content = [
            {"token": "he", "logprob": -1.0, "bytes": None, "top_logprobs": []},
            {
                "token": "y",
                "logprob": -2.0,
                "top_logprobs": [{"token": "y", "logprob": -2.0}, {"token": "z", "logprob": -3.0}],
            },
        ]
        serving.answers = [lambda: chat("hey", logprobs={"content": content})]
        (choice,) = complete(customer, aligned.id, logprobs=2).json()["choices"]
        assert choice["logprobs"] == {
            "tokens": ["he", "y"],
            "token_logprobs": [-1.0, -2.0],
            "top_logprobs": [{}, {"y": -2.0, "z": -3.0}],
            "text_offset": [0, 2],
        }

    @pytest.mark.parametrize(
        "answer",
        [
            lambda: httpx.Response(500, json={}),
            lambda: httpx.Response(200, json={"choices": [{}]}),
            lambda: httpx.Response(200, json={}),
        ],
    )
    def test_a_fault_of_the_server_is_not_shown(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        answer: Callable[[], httpx.Response],
    ) -> None:
        serving.answers = [lambda: chat("hi"), answer]
        response = complete(customer, aligned.id, ["p", "q"])
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "serving_unavailable"


class TestStream:
    def test_several_prompts_with_echo_and_usage(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        serving.answers = [
            lambda: events(
                chunk(""),
                chunk("a"),
                chunk(None, finish_reason="length"),
                {"choices": [], "usage": USAGE},
            )
        ]
        response = complete(
            customer,
            aligned.id,
            ["p", "q"],
            stream=True,
            echo=True,
            stream_options={"include_usage": True},
        )
        assert response.text.endswith("data: [DONE]\n\n")
        *texts, usage = told(response)
        shown = [
            (choice["index"], choice["text"], choice["finish_reason"])
            for value in texts
            for choice in value["choices"]  # type: ignore[attr-defined]
        ]
        assert shown == [
            (0, "p", None),
            (0, "a", None),
            (0, "", "length"),
            (1, "q", None),
            (1, "a", None),
            (1, "", "length"),
        ]
        assert usage["choices"] == []
        assert usage["usage"] == {name: 2 * count for name, count in USAGE.items()}

    @pytest.mark.parametrize(
        ("second", "code"),
        [
            (lambda: events(chunk("b"), is_complete=False), "serving_unavailable"),
            (lambda: events("no object"), "serving_unavailable"),
            (lambda: events({"error": {"message": "m", "code": 400}}), "invalid_request"),
            (lambda: httpx.Response(500, json={}), "serving_unavailable"),
            (lambda: httpx.Response(400, json={"error": {"message": "m", "code": "c"}}), "c"),
        ],
    )
    def test_what_goes_wrong_later_ends_it_in_an_error(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        serving: Serving,
        second: Callable[[], httpx.Response],
        code: str,
    ) -> None:
        serving.answers = [lambda: events(chunk("a")), second]
        response = complete(customer, aligned.id, ["p", "q"], stream=True)
        assert response.status_code == 200
        last = told(response)[-1]
        assert last["error"]["code"] == code  # type: ignore[index]
        assert "[DONE]" not in response.text

    def test_a_first_prompt_that_is_refused_has_a_status(
        self, customer: Tenant, aligned: ModelVersion, serving: Serving
    ) -> None:
        fault = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}
        serving.answers = [lambda: httpx.Response(400, json=fault)]
        response = complete(customer, aligned.id, stream=True)
        assert (response.status_code, response.json()) == (400, fault)
