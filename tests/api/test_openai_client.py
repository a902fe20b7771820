"""The contract, with the stock `openai` client on a real socket, validating every answer strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI
from openai.types import FilePurpose

from models.api_key import Project, Scope
from models.job import Job, append_event, fail
from models.model_version import Gate, ModelVersion
from tests.api.conftest import Place, rows
from tests.api.server import serve

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    with serve(app) as address:
        yield address


@pytest.fixture
def project(place: Place) -> Project:
    return place.project()


@pytest.fixture
def client(address: str, place: Place, project: Project) -> Iterator[OpenAI]:
    token = place.key(project, Scope.CUSTOMER)
    place.session.commit()
    with OpenAI(
        base_url=f"{address}/v1",
        api_key=token,
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture
def async_client(client: OpenAI) -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=client.base_url,
        api_key=client.api_key,
        max_retries=0,
        _strict_response_validation=True,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "my rows.jsonl"
    path.write_bytes(rows())
    return path


class TestFiles:
    def test_upload_list_read_delete(self, client: OpenAI, data: Path) -> None:
        made = client.files.create(file=data, purpose="fine-tune")
        assert (made.status, made.filename, made.bytes) == ("processed", data.name, len(rows()))
        assert client.files.wait_for_processing(made.id).id == made.id
        second = client.files.create(file=("b.jsonl", rows(11)), purpose="fine-tune")
        assert [file.id for file in client.files.list(limit=1)] == [second.id, made.id]
        assert [f.id for f in client.files.list(order="asc")] == [made.id, second.id]
        assert client.files.content(made.id).read() == rows()
        with client.files.with_streaming_response.content(made.id) as response:
            assert b"".join(response.iter_bytes()) == rows()
        assert client.files.delete(made.id).deleted is True
        with pytest.raises(openai.NotFoundError) as caught:
            client.files.retrieve(made.id)
        assert caught.value.code == "file_not_found"

    def test_expiry(self, client: OpenAI, data: Path) -> None:
        made = client.files.create(
            file=data,
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert made.expires_at == made.created_at + 3600
        assert client.files.retrieve(made.id).expires_at == made.expires_at
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(
                file=data,
                purpose="fine-tune",
                expires_after={"anchor": "created_at", "seconds": 60},
            )
        assert caught.value.param == "expires_after.seconds"

    @pytest.mark.parametrize("purpose", ["assistants", "batch", "user_data", "vision"])
    def test_other_purposes(self, client: OpenAI, purpose: FilePurpose) -> None:
        made = client.files.create(file=b"some bytes", purpose=purpose)
        assert [file.id for file in client.files.list(purpose=purpose)] == [made.id]
        assert client.files.content(made.id).read() == b"some bytes"

    def test_every_listed_file_can_be_deleted(self, client: OpenAI) -> None:
        for number in range(5):
            client.files.create(file=("a.jsonl", rows(10 + number)), purpose="fine-tune")
        deleted = [client.files.delete(file.id).id for file in client.files.list(limit=2)]
        assert len(deleted) == 5
        assert list(client.files.list()) == []

    async def _asynchronous(self, client: AsyncOpenAI, data: Path) -> None:
        made = await client.files.create(file=data, purpose="fine-tune")
        assert (await client.files.wait_for_processing(made.id)).status == "processed"
        assert [file.id async for file in client.files.list(limit=1)] == [made.id]
        assert (await client.files.content(made.id)).read() == rows()
        async with client.files.with_streaming_response.content(made.id) as response:
            assert b"".join([chunk async for chunk in response.iter_bytes()]) == rows()
        assert (await client.files.delete(made.id)).deleted is True
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        with pytest.raises(openai.APIStatusError) as caught:
            await client.files.create(file=("a", b"x" * 8_000_000), purpose="fine-tune")
        assert caught.value.status_code == 413

    def test_asynchronous(self, async_client: AsyncOpenAI, data: Path) -> None:
        anyio.run(self._asynchronous, async_client, data)

    def test_faulty_rows_reach_the_caller(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=("a.jsonl", b"x\n{}\n"), purpose="fine-tune")
        assert caught.value.code == "invalid_training_file"
        assert isinstance(caught.value.body, dict)
        assert [fault["line"] for fault in caught.value.body["faults"]] == [1, 2]
        assert caught.value.request_id is not None

    def test_a_file_that_is_too_large_is_told_so(self, client: OpenAI) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("a.jsonl", b"x" * 8_000_000), purpose="fine-tune")
        assert caught.value.status_code == 413
        assert caught.value.code == "body_too_large"

    def test_a_wrong_key_is_refused_before_the_bytes_are_kept(self, address: str) -> None:
        with (
            OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.files.create(file=("a.jsonl", b"x" * 60_000), purpose="fine-tune")
        assert caught.value.code == "invalid_api_key"


class TestUploads:
    @pytest.mark.parametrize("part_size", [100, 64 * 2**20])
    def test_a_file_in_chunks(self, client: OpenAI, data: Path, part_size: int) -> None:
        made = client.uploads.upload_file_chunked(
            file=data,
            mime_type="text/jsonl",
            purpose="fine-tune",
            part_size=part_size,
            md5=hashlib.md5(rows()).hexdigest(),
        )
        assert (made.status, made.filename, made.bytes) == ("completed", data.name, len(rows()))
        assert made.file is not None
        assert (made.file.status, made.file.filename) == ("processed", data.name)
        assert client.files.content(made.file.id).read() == rows()

    def test_bytes_in_chunks(self, client: OpenAI) -> None:
        made = client.uploads.upload_file_chunked(
            file=rows(),
            filename="b.jsonl",
            bytes=len(rows()),
            mime_type="text/jsonl",
            purpose="fine-tune",
            part_size=64,
        )
        assert made.file is not None
        assert client.files.retrieve(made.file.id).filename == "b.jsonl"

    def test_by_hand(self, client: OpenAI) -> None:
        content = rows()
        upload = client.uploads.create(
            bytes=len(content),
            filename="c.jsonl",
            mime_type="text/jsonl",
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert (upload.status, upload.file) == ("pending", None)
        second = client.uploads.parts.create(upload.id, data=content[50:])
        first = client.uploads.parts.create(upload.id, data=content[:50])
        assert second.upload_id == upload.id
        with pytest.raises(openai.BadRequestError) as caught:
            client.uploads.complete(upload.id, part_ids=[second.id])
        assert caught.value.code == "invalid_parts"
        made = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
        assert made.file is not None
        assert made.file.expires_at == made.file.created_at + 7200
        given_up = client.uploads.create(
            bytes=1, filename="d", mime_type="text/jsonl", purpose="fine-tune"
        )
        assert client.uploads.cancel(given_up.id).status == "cancelled"
        with pytest.raises(openai.ConflictError) as conflict:
            client.with_options(max_retries=5).uploads.parts.create(given_up.id, data=b"x")
        assert conflict.value.code == "upload_not_pending"
        assert conflict.value.response.request.headers["x-stainless-retry-count"] == "0"

    def test_faulty_rows_reach_the_caller(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.uploads.upload_file_chunked(
                file=b"x\n{}\n",
                filename="e.jsonl",
                bytes=5,
                mime_type="text/jsonl",
                purpose="fine-tune",
            )
        assert caught.value.code == "invalid_training_file"
        assert isinstance(caught.value.body, dict)
        assert [fault["line"] for fault in caught.value.body["faults"]] == [1, 2]

    async def _asynchronous(self, client: AsyncOpenAI, data: Path) -> None:
        made = await client.uploads.upload_file_chunked(
            file=data, mime_type="text/jsonl", purpose="fine-tune", part_size=200
        )
        assert made.file is not None
        assert (await client.files.content(made.file.id)).read() == rows()

    def test_asynchronous(self, async_client: AsyncOpenAI, data: Path) -> None:
        anyio.run(self._asynchronous, async_client, data)


class TestJobs:
    def test_create_list_retrieve_events_cancel(
        self, client: OpenAI, data: Path, aligned: ModelVersion, place: Place
    ) -> None:
        file = client.files.create(file=data, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=aligned.id,
            training_file=file.id,
            suffix="mine",
            seed=1,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            metadata={"team": "a"},
        )
        assert job.status == "queued"
        assert job.hyperparameters.n_epochs == 2
        assert job.method is not None
        assert job.method.supervised is not None
        assert job.method.supervised.hyperparameters is not None
        assert job.method.supervised.hyperparameters.batch_size == 10
        assert job.error is None
        assert client.fine_tuning.jobs.retrieve(job.id).id == job.id
        client.fine_tuning.jobs.create(model=aligned.id, training_file=file.id)
        jobs = client.fine_tuning.jobs
        assert len(list(jobs.list(limit=1))) == 2
        assert [found.id for found in jobs.list(metadata={"team": "a"})] == [job.id]
        assert len(list(jobs.list(extra_query={"metadata": "null"}))) == 1
        append_event(
            place.session,
            place.session.get_one(Job, job.id),
            "Step 1/2: training loss=1.00",
            type="metrics",
            data={"step": 1, "train_loss": 1.0},
        )
        place.session.commit()
        events = list(jobs.list_events(job.id, limit=1))
        assert len(events) == 3
        assert (events[0].type, events[0].data) == ("metrics", {"step": 1, "train_loss": 1.0})
        assert list(jobs.checkpoints.list(job.id)) == []
        assert jobs.cancel(job.id).status == "cancelled"
        with pytest.raises(openai.ConflictError) as caught:
            jobs.cancel(job.id)
        assert caught.value.code == "illegal_transition"

    def test_a_conflict_is_not_retried(
        self, client: OpenAI, data: Path, aligned: ModelVersion
    ) -> None:
        file = client.files.create(file=data, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=aligned.id, training_file=file.id)
        with pytest.raises(openai.ConflictError) as caught:
            client.with_options(max_retries=5).fine_tuning.jobs.pause(job.id)
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"

    def test_a_failed_job_and_a_released_one(
        self, client: OpenAI, data: Path, aligned: ModelVersion, place: Place
    ) -> None:
        file = client.files.create(file=data, purpose="fine-tune")
        made = client.fine_tuning.jobs.create(model=aligned.id, training_file=file.id)
        job = place.session.get_one(Job, made.id)
        fail(place.session, job, code="harmful_score_exceeded", message="HS is 90%.")
        place.session.commit()
        failed = client.fine_tuning.jobs.retrieve(made.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("harmful_score_exceeded", "HS is 90%.")
        assert failed.fine_tuned_model is None

    def test_a_held_job_parses_too(
        self, client: OpenAI, aligned: ModelVersion, place: Place, project: Project
    ) -> None:
        version, job = place.held(project, aligned)
        place.session.commit()
        shown = client.fine_tuning.jobs.retrieve(job.id)
        assert shown.status == "running"
        assert shown.model_extra is not None
        assert shown.model_extra["safety"]["gate"] == "held"
        assert client.models.retrieve(version.id).id == version.id


class TestModels:
    def test_list_retrieve_delete(
        self, client: OpenAI, aligned: ModelVersion, place: Place
    ) -> None:
        models = {model.id: model for model in client.models.list()}
        assert models[aligned.id].owned_by == "titer"
        shown = client.models.retrieve(aligned.id)
        assert shown.model_extra is not None
        assert shown.model_extra["gate"] == Gate.RELEASED
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.models.delete(aligned.id)
        assert caught.value.code == "not_your_model"
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("ft:org/none:a::b")
        assert missing.value.code == "model_not_found"


class TestChat:
    @pytest.fixture
    def serving(self, app: FastAPI, address: str) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            if b'"stream":true' not in request.content:
                return httpx.Response(200, json=ANSWER)
            chunk = (
                b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
                b'"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
            )
            # The second answer breaks off: there is no [DONE].
            end = b"" if b"break" in request.content else b"data: [DONE]\n\n"
            return httpx.Response(200, content=chunk + end)

        app.state.serving = httpx.AsyncClient(
            transport=httpx.MockTransport(answer), base_url="http://serving"
        )

    @pytest.mark.usefixtures("serving")
    def test_whole_and_streamed(self, client: OpenAI, aligned: ModelVersion) -> None:
        whole = client.chat.completions.create(
            model=aligned.id, messages=[{"role": "user", "content": "x"}], max_tokens=5
        )
        assert whole.choices[0].message.content == "hi"
        stream = client.chat.completions.create(
            model=aligned.id, messages=[{"role": "user", "content": "x"}], stream=True
        )
        assert [chunk.choices[0].delta.content for chunk in stream] == ["hi"]

    @pytest.mark.usefixtures("serving")
    def test_a_stream_that_breaks_off_raises(self, client: OpenAI, aligned: ModelVersion) -> None:
        stream = client.chat.completions.create(
            model=aligned.id, messages=[{"role": "user", "content": "break"}], stream=True
        )
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "serving_unavailable"
