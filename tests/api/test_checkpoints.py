"""Checkpoints over HTTP: order, pages, and which of them can be used."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from models.base import utc_now
from models.job import Job, JobStatus
from models.job_checkpoint import JobCheckpoint, checkpoint_name
from models.model_version import Gate, ModelVersion, VersionKind
from models.rate import Rate
from tests.api.conftest import Place, Tenant, rows, upload

JOBS = "/v1/fine_tuning/jobs"
METRICS = {"step": 3, "train_loss": 1.5, "train_mean_token_accuracy": 0.5, "canary_loss": 2.0}


@pytest.fixture
def job(customer: Tenant, aligned: ModelVersion, place: Place) -> Job:
    """A job of four epochs: the first one's weights are gone, the second was not evaluated."""
    job = place.job(customer.project, aligned, status=JobStatus.SUCCEEDED)
    for step, gate in ((3, None), (6, Gate.PENDING), (9, Gate.RELEASED), (12, Gate.RELEASED)):
        is_last = step == 12
        name = job.result_model_id if is_last else checkpoint_name(job.result_model_id, step)
        place.session.add(
            JobCheckpoint(
                job_id=job.id, step=step, version_name=name, metrics={**METRICS, "step": step}
            )
        )
        if gate is not None:
            version = place.version(
                name,
                VersionKind.TUNED,
                gate=gate,
                parent=aligned,
                project=customer.project,
                job=job if is_last else None,
            )
            if gate == Gate.RELEASED:
                place.evaluation(version, harmful=step, fine_tuning_accuracy=Rate(count=3, n=4))
            else:
                version.gate_reasons = ["It was not evaluated."]
    place.session.commit()
    return job


def listed(tenant: Tenant, job: Job, **query: object) -> dict[str, object]:
    response = tenant.client.get(f"{JOBS}/{job.id}/checkpoints", params=query)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_newest_first_with_what_was_measured(customer: Tenant, job: Job) -> None:
    page = listed(customer, job)
    data = page["data"]
    assert isinstance(data, list)
    assert [found["step_number"] for found in data] == [12, 9, 6, 3]
    last, released, pending, gone = data
    assert last["fine_tuned_model_checkpoint"] == job.result_model_id
    assert released["fine_tuned_model_checkpoint"] == f"{job.result_model_id}:ckpt-step-9"
    assert released["metrics"] == {
        **METRICS,
        "step": 9,
        "harmful_score": 9.0,
        "harmful_or_incoherent": 9.0,
        "fine_tuning_accuracy": 75.0,
    }
    assert (released["usable"], released["evaluated"], released["gate"]) == (True, True, "released")
    assert (pending["usable"], pending["evaluated"], pending["gate"]) == (False, False, "pending")
    assert pending["gate_reasons"] == ["It was not evaluated."]
    assert (gone["usable"], gone["gate"]) == (False, None)
    assert gone["metrics"]["train_loss"] == 1.5
    assert all(found["id"].startswith("ftckpt_") for found in data)


def test_pages(customer: Tenant, job: Job) -> None:
    first = listed(customer, job, limit=3)
    assert first["has_more"] is True
    data = first["data"]
    assert isinstance(data, list)
    rest = listed(customer, job, limit=3, after=data[-1]["id"])
    assert rest["has_more"] is False
    assert isinstance(rest["data"], list)
    assert [found["step_number"] for found in rest["data"]] == [3]
    odd = customer.client.get(f"{JOBS}/{job.id}/checkpoints", params={"after": "ftckpt_none"})
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "after")
    assert customer.client.get(f"{JOBS}/{job.id}/checkpoints?limit=0").status_code == 400


def test_others_see_nothing(
    anonymous: TestClient, stranger: Tenant, operator: Tenant, job: Job
) -> None:
    assert anonymous.get(f"{JOBS}/{job.id}/checkpoints").status_code == 401
    assert stranger.client.get(f"{JOBS}/{job.id}/checkpoints").status_code == 404
    name = f"{job.result_model_id}:ckpt-step-9"
    assert stranger.client.get(f"/v1/models/{name}").status_code == 404
    assert isinstance(listed(operator, job)["data"], list)


def test_an_unevaluated_one_says_so_and_is_neither_asked_nor_tuned(
    customer: Tenant, job: Job
) -> None:
    name = f"{job.result_model_id}:ckpt-step-6"
    shown = customer.client.get(f"/v1/models/{name}").json()
    assert (shown["gate"], shown["gate_reasons"]) == ("pending", ["It was not evaluated."])
    chat = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    answer = customer.client.post("/v1/chat/completions", json=chat)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_blocked")
    assert "not evaluated" in answer.json()["error"]["message"]
    body = {"model": name, "training_file": upload(customer, rows())}
    assert customer.client.post(JOBS, json=body).status_code == 403
    assert name not in {m["id"] for m in customer.client.get("/v1/models").json()["data"]}


def test_a_released_one_can_be_tuned_on_and_deleted(
    customer: Tenant, job: Job, aligned: ModelVersion, place: Place
) -> None:
    name = f"{job.result_model_id}:ckpt-step-9"
    assert name in {m["id"] for m in customer.client.get("/v1/models").json()["data"]}
    body = {"model": name, "training_file": upload(customer, rows())}
    made = customer.client.post(JOBS, json=body).json()
    assert made["model"] == name
    assert customer.client.delete(f"/v1/models/{name}").status_code == 409  # it is being tuned on
    customer.client.post(f"{JOBS}/{made['id']}/cancel")
    assert customer.client.delete(f"/v1/models/{name}").json()["deleted"] is True
    data = listed(customer, job)["data"]
    assert isinstance(data, list)
    assert (data[1]["usable"], data[1]["gate"]) == (False, None)


def test_a_model_of_the_same_name_that_another_job_made_is_not_shown(
    customer: Tenant, aligned: ModelVersion, place: Place
) -> None:
    one, two = (place.job(customer.project, aligned) for _ in range(2))
    version = place.version(
        two.result_model_id,
        VersionKind.TUNED,
        parent=aligned,
        project=customer.project,
        job=two,
    )
    place.session.add(JobCheckpoint(job_id=one.id, step=1, version_name=version.id, metrics={}))
    place.session.commit()
    assert version.created_at <= utc_now()
    data = listed(customer, one)["data"]
    assert isinstance(data, list)
    assert (data[0]["usable"], data[0]["gate"]) == (False, None)
