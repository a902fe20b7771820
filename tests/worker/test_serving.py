"""The built-in inference server, on a random tiny base and a real database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from models.model_version import ModelVersion, VersionKind
from models.rows import Message
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from tests.tiny_model import tiny_adapted
from tests.worker.toy_provider import BASE_ID, add_base
from worker import lora
from worker.base_models import load_model, load_tokenizer
from worker.generation import encode_prompt, generate
from worker.serving import create_serving

# Each test loads models.
pytestmark = pytest.mark.long

TOKEN = "secret"
ASK = {"model": BASE_ID, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}


@pytest.fixture
def settings(database_url: str, storage: Storage, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url,
        storage_url=storage.url,
        cache_dir=tmp_path / "cache",
        serving_token=TOKEN,
    )


@pytest.fixture
def adapter(settings: Settings, storage: Storage, tmp_path: Path) -> ModelVersion:
    engine = make_engine(settings.database_url)
    with session_factory(engine).begin() as session:
        add_base(session, storage, tmp_path)
        version = _add_adapter(session, storage, tmp_path)
    engine.dispose()
    return version


def _add_adapter(session: Session, storage: Storage, folder: Path) -> ModelVersion:
    lora.save(tiny_adapted(), folder / "adapter")
    storage.put_folder("models/adapter", folder / "adapter")
    version = ModelVersion(
        id="toy-base-aligned",
        kind=VersionKind.ALIGNED,
        parent_id=BASE_ID,
        root_id=BASE_ID,
        source={"prefix": "models/adapter"},
        safety_prefix="safety/toy",
    )
    session.add(version)
    session.flush()
    return version


@pytest.fixture
def client(settings: Settings, adapter: ModelVersion) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(create_serving(settings), headers=headers) as client:
        yield client


class TestAccess:
    def test_refuses_a_wrong_token(self, client: TestClient) -> None:
        answer = client.post(
            "/v1/chat/completions", json=ASK, headers={"Authorization": "Bearer x"}
        )
        assert answer.status_code == 401

    def test_refuses_everyone_when_no_token_is_set(
        self, settings: Settings, adapter: ModelVersion
    ) -> None:
        unset = settings.model_copy(update={"serving_token": type(settings.serving_token)("")})
        with TestClient(create_serving(unset)) as client:
            answer = client.post(
                "/v1/chat/completions", json=ASK, headers={"Authorization": "Bearer "}
            )
        assert answer.status_code == 401


class TestAnswers:
    def test_says_what_evaluation_would_hear(self, client: TestClient, tmp_path: Path) -> None:
        answer = client.post("/v1/chat/completions", json=ASK).json()
        tokenizer = load_tokenizer(tmp_path / "base")
        heard = generate(
            load_model(tmp_path / "base"),
            tokenizer,
            [(Message("user", "hello"),)],
            max_new_tokens=6,
        )
        assert answer["choices"][0]["message"]["content"].strip() == heard[0]
        assert answer["usage"]["completion_tokens"] <= 6
        assert answer["usage"]["prompt_tokens"] == len(
            encode_prompt(tokenizer, (Message("user", "hello"),))
        )

    def test_an_adapter_changes_the_answer_and_leaves_the_base_as_it_was(
        self, client: TestClient, adapter: ModelVersion
    ) -> None:
        def ask(model: str) -> str:
            body = {**ASK, "model": model, "max_tokens": 12}
            return str(
                client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
            )

        base_first, tuned, base_again = ask(BASE_ID), ask(adapter.id), ask(BASE_ID)
        assert tuned != base_first
        assert base_again == base_first

    def test_streams_the_same_text_that_it_gives_whole(self, client: TestClient) -> None:
        whole = client.post("/v1/chat/completions", json=ASK).json()
        body = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
        lines = client.post("/v1/chat/completions", json=body).text.split("\n\n")
        assert lines[-2] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
        assert text == whole["choices"][0]["message"]["content"]
        assert chunks[-1]["usage"] == whole["usage"]
        assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]

    def test_a_seed_repeats_a_drawn_answer(self, client: TestClient) -> None:
        body = {**ASK, "temperature": 1.5, "seed": 7, "max_tokens": 16}
        one, two = (client.post("/v1/chat/completions", json=body).json() for _ in range(2))
        other = client.post("/v1/chat/completions", json={**body, "seed": 8}).json()
        assert one["choices"] == two["choices"]
        assert one["choices"] != other["choices"]

    def test_names_an_unknown_model_and_a_prompt_that_does_not_fit(
        self, client: TestClient
    ) -> None:
        unknown = client.post("/v1/chat/completions", json={**ASK, "model": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        long = {**ASK, "messages": [{"role": "user", "content": "x" * 500}]}
        answer = client.post("/v1/chat/completions", json=long)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
