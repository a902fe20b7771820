"""The contract, with the stock `openai` client on a real socket, validating every answer strictly."""

from __future__ import annotations

import asyncio
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

from models.api_key import Project
from models.job import Job, append_event, claim, fail
from models.job_checkpoint import JobCheckpoint, checkpoint_name
from models.model_version import Gate, ModelVersion
from models.scope import Scope
from tests.api.conftest import Place, rows
from tests.api.server import serve

# Each test starts a server.
pytestmark = pytest.mark.long

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
            client.with_options(max_retries=5).fine_tuning.jobs.resume(job.id)
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"

    def test_every_field_of_a_creation(
        self, client: OpenAI, data: Path, aligned: ModelVersion
    ) -> None:
        file = client.files.create(file=data, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=aligned.id,
            training_file=file.id,
            validation_file=file.id,
            suffix="mine",
            hyperparameters={"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": 0.5},
            integrations=[{"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}],
            metadata={"team": "a"},
            extra_body={"evaluate_checkpoints": True},
        )
        assert 0 <= job.seed < 2**31
        assert job.validation_file == file.id
        assert (job.result_files, job.trained_tokens, job.estimated_finish) == ([], None, None)
        assert job.hyperparameters.n_epochs == 1
        assert job.method is not None
        assert job.method.supervised is not None
        assert job.method.supervised.hyperparameters is not None
        assert job.method.supervised.hyperparameters.batch_size == 4
        assert job.integrations is not None
        assert job.integrations[0].wandb.project == "p"
        assert job.model_extra is not None
        assert job.model_extra["evaluate_checkpoints"] is True
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.create(
                model=aligned.id, training_file=file.id, method={"type": "reinforcement"}
            )
        assert caught.value.code == "unsupported_method"

    def test_an_integration_beyond_the_schema_still_parses(
        self, client: OpenAI, data: Path, aligned: ModelVersion
    ) -> None:
        file = client.files.create(file=data, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=aligned.id,
            training_file=file.id,
            extra_body={"integrations": [{"type": "mlflow", "mlflow": {"experiment": "e"}}]},
        )
        assert job.integrations == []
        assert job.model_extra is not None
        assert job.model_extra["further_integrations"][0]["mlflow"]["experiment"] == "e"

    def test_pause_and_resume_parse_strictly(
        self, client: OpenAI, data: Path, aligned: ModelVersion, place: Place
    ) -> None:
        file = client.files.create(file=data, purpose="fine-tune")
        jobs = client.fine_tuning.jobs
        job = jobs.create(model=aligned.id, training_file=file.id)
        paused = jobs.pause(job.id)
        assert paused.status == "queued"
        assert paused.model_extra is not None
        assert paused.model_extra["state"] == "paused"
        assert next(iter(jobs.list())).id == job.id
        assert jobs.resume(job.id).status == "queued"
        claim(place.session, job.id, owner="w", lease_seconds=60)
        place.session.commit()
        pausing = jobs.pause(job.id)
        assert pausing.status == "running"
        assert pausing.model_extra is not None
        assert pausing.model_extra["state"] == "pausing"

    def test_checkpoints_are_paged_by_the_client(
        self, client: OpenAI, aligned: ModelVersion, place: Place, project: Project
    ) -> None:
        job = place.job(project, aligned)
        for step in range(1, 6):
            place.session.add(
                JobCheckpoint(
                    job_id=job.id,
                    step=step,
                    version_name=checkpoint_name(job.result_model_id, step),
                    metrics={"step": step, "train_loss": 1.5, "canary_loss": None},
                )
            )
        place.session.commit()
        found = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
        assert [checkpoint.step_number for checkpoint in found] == [5, 4, 3, 2, 1]
        assert found[0].metrics.train_loss == 1.5
        assert found[0].fine_tuned_model_checkpoint == f"{job.result_model_id}:ckpt-step-5"

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


class TestAsync:
    def test_the_whole_life_of_a_job(
        self, client: OpenAI, data: Path, aligned: ModelVersion, place: Place
    ) -> None:
        async def live() -> None:
            async with AsyncOpenAI(
                base_url=client.base_url,
                api_key=client.api_key,
                max_retries=0,
                _strict_response_validation=True,
            ) as asynchronous:
                jobs = asynchronous.fine_tuning.jobs
                file = await asynchronous.files.create(file=data, purpose="fine-tune")
                made = [
                    await jobs.create(
                        model=aligned.id, training_file=file.id, metadata={"number": str(number)}
                    )
                    for number in range(3)
                ]
                assert [job.id async for job in jobs.list(limit=2)] == [j.id for j in made[::-1]]
                assert [job.id async for job in jobs.list(metadata={"number": "1"})] == [made[1].id]
                assert (await jobs.pause(made[0].id)).status == "queued"
                assert (await jobs.resume(made[0].id)).status == "queued"
                assert [point async for point in jobs.checkpoints.list(made[0].id)] == []
                assert (await jobs.cancel(made[0].id)).status == "cancelled"
                events = [event async for event in jobs.list_events(made[0].id, limit=2)]
                assert len({event.id for event in events}) == 5
                assert events[0].message == "Job cancelled."
                with pytest.raises(openai.ConflictError):
                    await jobs.pause(made[0].id)

        asyncio.run(live())


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
