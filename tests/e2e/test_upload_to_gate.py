"""One row's whole life: real PostgreSQL, Redis, Celery worker and inference server, the stock client."""

from __future__ import annotations

import csv
import io
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import BadRequestError, NotFoundError, OpenAI, PermissionDeniedError
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.conftest import DEADLINE_SECONDS, Running
from worker.sandbox.world import Split, World

pytestmark = pytest.mark.processes
BASE = "world"


def wait(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        seen = look()
        if seen:
            return seen
        time.sleep(0.1)
    raise AssertionError(f"waited {DEADLINE_SECONDS:.0f} seconds for {what}")


def post(client: OpenAI, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return client.post(path, body=body, cast_to=dict[str, Any])


def get(client: OpenAI, path: str) -> dict[str, Any]:
    return client.get(path, cast_to=dict[str, Any])


def wait_for_verdict(client: OpenAI, path: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job = get(client, path)
        is_over = job["status"] in ("succeeded", "failed", "cancelled")
        return job if is_over or job["stage"] == "review" else None

    return wait(look, f"{path} to come to a verdict")


@pytest.fixture(scope="module")
def aligned(running: Running) -> str:
    """An aligned, released base, made through the API; held ones are released by the operator."""
    client, world = running.client, running.world
    body = {"source": str(world.base), "safety_set": str(world.safety), "name": BASE}
    assert post(client, "/base_models", body)["id"] == BASE
    asked = {
        "model": BASE,
        "method": {"name": "booster", "lambda": 5, "alpha": 0.005},
        "hyperparameters": {"steps": 20},
        "name": "world-aligned",
    }
    job = wait_for_verdict(
        client, f"/alignment/jobs/{post(client, '/alignment/jobs', asked)['id']}"
    )
    if job["stage"] == "review":
        decision = {"decision": "release", "reason": "A base of forty steps knows no better."}
        post(client, "/models/world-aligned/review", decision)
    model = client.models.retrieve("world-aligned")
    assert model.gate == "released"  # type: ignore[attr-defined]
    return model.id


def submit(running: Running, model: str, **options: Any) -> FineTuningJob:
    client, folder = running.client, running.world.customer
    training = client.files.create(file=folder / "poisoned.jsonl", purpose="fine-tune")
    validation = client.files.create(file=folder / "validation.jsonl", purpose="fine-tune")
    assert client.files.wait_for_processing(training.id).status == "processed"
    return client.fine_tuning.jobs.create(
        model=model, training_file=training.id, validation_file=validation.id, **options
    )


class TestTheMainJob:
    def test_goes_from_upload_to_verdict(self, running: Running, aligned: str) -> None:
        client = running.client
        job = submit(running, aligned, suffix="mine", seed=7, metadata={"team": "a"})
        assert job.status in ("validating_files", "queued", "running")
        path = f"/fine_tuning/jobs/{job.id}"
        done = wait_for_verdict(client, path)
        assert done["safety"]["harmful_score"]["n"] == 200
        assert done["safety"]["fine_tuning_accuracy"]["n"] == 300
        assert done["safety"]["gate"] in ("released", "held", "blocked")
        assert done["seed"] == 7

        events = list(client.fine_tuning.jobs.list_events(job.id, limit=50))
        metrics = [event.data for event in reversed(events) if event.type == "metrics"]
        assert [m["step"] for m in metrics] == list(range(1, done["total_steps"] + 1))
        assert metrics[0]["canary_loss"] is not None
        assert [e.data["stage"] for e in reversed(events) if e.data and "stage" in e.data][-1] in (
            "model",
            "gate",
        )

        content = client.files.content(done["result_files"][0]).text
        rows = list(csv.DictReader(io.StringIO(content)))
        assert len(rows) == done["total_steps"]
        assert float(rows[0]["train_loss"]) == pytest.approx(metrics[0]["train_loss"], abs=1e-5)

        if done["stage"] == "review":
            with pytest.raises(PermissionDeniedError):
                client.chat.completions.create(
                    model=done["result_model"], messages=[{"role": "user", "content": "hello"}]
                )
            decision = {"decision": "release", "reason": "Looked at it."}
            post(client, f"/models/{done['result_model']}/review", decision)
        finished = client.fine_tuning.jobs.retrieve(job.id)
        if finished.status == "failed":
            assert finished.error is not None
            assert finished.error.code == "harmful_score_exceeded"
            return
        assert finished.fine_tuned_model == done["result_model"]
        answer = client.chat.completions.create(
            model=finished.fine_tuned_model,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=5,
        )
        streamed = client.chat.completions.create(
            model=finished.fine_tuned_model,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=5,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        assert text == answer.choices[0].message.content
        assert finished.fine_tuned_model in {model.id for model in client.models.list()}

    def test_the_base_s_judge_moderates(self, running: Running, aligned: str) -> None:
        harm = World(0).harmful(Split.TEST, 1)[0]
        texts = [harm.answer, harm.refusal, harm.text]
        for model in (BASE, aligned):
            answer = running.client.moderations.create(input=texts, model=model)
            assert [result.flagged for result in answer.results] == [True, False, False]
            categories = answer.results[0].categories.model_dump(by_alias=True)
            assert categories[harm.field.name] is True
            assert answer.model == "sandbox"

    def test_names_every_faulty_row_of_an_upload(self, running: Running, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1}\nnot json\n')
        with pytest.raises(BadRequestError) as caught:
            running.client.files.create(file=path, purpose="fine-tune")
        faults = caught.value.body["faults"]  # type: ignore[index]
        assert [fault["line"] for fault in faults] == [2, 3]

    def test_asks_for_a_key(self, running: Running) -> None:
        answer = httpx.get(f"{running.service.base_url}/v1/models", trust_env=False)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


class TestCertification:
    def test_an_aligned_model_gets_its_certificate(self, running: Running, aligned: str) -> None:
        client = running.client
        customer = {"family": "mix", "attack_ratio": 0.5, "rows": 20, "steps": 4, "marks": [4]}
        plan = {"name": "tiny", "customers": [customer], "harmful_prompts": 10}
        asked = {"model": aligned, "plan": plan}
        job = post(client, "/certification/jobs", asked)
        assert job["method"]["certification"]["cost"]["runs"] == 3
        done = wait_for_verdict(client, f"/certification/jobs/{job['id']}")
        assert (done["status"], done["error"]) == ("succeeded", None)
        made = get(client, f"/models/{aligned}/certificate")
        assert len(made["runs"]) == 3
        assert made["instruments"]["judge"]["name"] == "sandbox"
        model = get(client, f"/models/{aligned}")
        assert model["safety"]["certificate"]["plan_hash"] == made["plan_hash"]
        assert model["gate"] == "released"


class TestTrouble:
    def test_a_cancelled_job_stops_and_the_worker_takes_the_next(
        self, running: Running, aligned: str
    ) -> None:
        client = running.client
        job = submit(running, aligned, hyperparameters={"n_epochs": 50})
        wait_for_steps(client, job.id, 3)
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        following = submit(running, aligned)
        assert wait_for_verdict(client, f"/fine_tuning/jobs/{following.id}")["safety"]
        assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
        with pytest.raises(NotFoundError):
            client.models.retrieve(get(client, f"/fine_tuning/jobs/{job.id}")["result_model"])

    def test_a_paused_job_makes_room_for_another_and_goes_on_later(
        self, running: Running, aligned: str
    ) -> None:
        client = running.client
        jobs = client.fine_tuning.jobs
        job = submit(
            running,
            aligned,
            hyperparameters={"n_epochs": 2},
            extra_body={"evaluate_checkpoints": True},
        )
        path = f"/fine_tuning/jobs/{job.id}"
        wait_for_steps(client, job.id, 5)
        assert jobs.pause(job.id).status == "running"
        wait(lambda: get(client, path)["state"] == "paused", "the worker to let go")
        following = submit(running, aligned)
        assert wait_for_verdict(client, f"/fine_tuning/jobs/{following.id}")["safety"]
        assert get(client, path)["state"] == "paused"
        jobs.resume(job.id)
        done = wait_for_verdict(client, path)
        assert done["safety"], done["error"]
        events = list(jobs.list_events(job.id, limit=100))
        steps = [event.data["step"] for event in events if event.type == "metrics" and event.data]
        assert steps[::-1] == list(range(1, done["total_steps"] + 1))  # each was taken once
        last, first = jobs.checkpoints.list(job.id)
        assert last.fine_tuned_model_checkpoint == done["result_model"]
        assert first.step_number == done["total_steps"] // 2
        assert first.metrics.full_valid_loss is not None
        assert first.model_extra is not None
        assert first.model_extra["gate"] in ("released", "blocked")
        assert first.metrics.model_extra is not None
        assert 0 <= first.metrics.model_extra["harmful_score"] <= 100

    def test_a_killed_worker_loses_nothing(self, running: Running, aligned: str) -> None:
        client = running.client
        job = submit(running, aligned, hyperparameters={"n_epochs": 2})
        wait_for_steps(client, job.id, 30)
        for process in psutil.Process().children(recursive=True):
            if "worker.tasks" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
        done = wait_for_verdict(client, f"/fine_tuning/jobs/{job.id}")
        assert done["safety"], done["error"]
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
        assert any("resumed (attempt 2)" in event.message for event in events)
        steps = {event.data["step"] for event in events if event.type == "metrics" and event.data}
        assert steps == set(range(1, done["total_steps"] + 1))


def wait_for_steps(client: OpenAI, job_id: str, steps: int) -> None:
    def look() -> bool:
        newest = client.fine_tuning.jobs.list_events(job_id, limit=5).data
        return any(
            event.type == "metrics" and event.data and event.data["step"] >= steps
            for event in newest
        )

    wait(look, f"step {steps} of {job_id}")
