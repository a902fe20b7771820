"""Evaluation jobs over HTTP: for operators, beside a gate that they leave as it is."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from models.audit import AuditEntry
from models.job import Job, JobKind, JobStatus
from models.model_version import Gate, ModelVersion, VersionKind
from tests.api.conftest import Place, SilentDoorbell, Tenant

JOBS = "/v1/evaluation/jobs"


def create(operator: Tenant, model: ModelVersion, **facts: object) -> dict[str, object]:
    response = operator.client.post(JOBS, json={"model": model.id, **facts})
    assert response.status_code == 200, response.text
    return dict(response.json())


def measured(place: Place, operator: Tenant, model: ModelVersion, *, harmful: int) -> Job:
    """An ended job with what a worker would have stored."""
    job = place.job(
        operator.project,
        model,
        kind=JobKind.EVALUATE,
        status=JobStatus.SUCCEEDED,
        result_model_id=model.id,
        recipe={},
    )
    evaluation = place.evaluation(model, harmful=harmful)
    evaluation.job_id, evaluation.gate, evaluation.policy_version = job.id, None, None
    place.session.commit()
    return job


class TestWho:
    def test_only_operators(
        self, anonymous: TestClient, customer: Tenant, aligned: ModelVersion
    ) -> None:
        assert anonymous.post(JOBS, json={"model": aligned.id}).status_code == 401
        assert customer.client.post(JOBS, json={"model": aligned.id}).status_code == 403


class TestCreate:
    def test_a_job_without_hyperparameters(
        self, operator: Tenant, aligned: ModelVersion, place: Place, doorbell: SilentDoorbell
    ) -> None:
        job = create(operator, aligned, metadata={"for": "the new judge"})
        assert (job["kind"], job["model"], job["result_model"]) == (
            "evaluate",
            aligned.id,
            aligned.id,
        )
        assert (job["hyperparameters"], job["method"]) == ({}, {"type": "evaluation"})
        assert (job["safety"], job["total_steps"]) == (None, 0)
        assert job["metadata"] == {"for": "the new judge"}
        assert doorbell.rung == [job["id"]]
        entry = place.session.scalars(
            select(AuditEntry).where(AuditEntry.action == "evaluation.started")
        ).one()
        assert entry.details == {"model": aligned.id}

    def test_any_registered_model_whatever_its_gate(
        self, operator: Tenant, base: ModelVersion, aligned: ModelVersion, place: Place
    ) -> None:
        blocked = place.version(
            "t", VersionKind.TUNED, parent=aligned, project=operator.project, gate=Gate.BLOCKED
        )
        place.session.commit()
        for model in (base, blocked):
            assert create(operator, model)["model"] == model.id
        missing = operator.client.post(JOBS, json={"model": "none"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")

    def test_one_at_a_time_for_each_model(self, operator: Tenant, aligned: ModelVersion) -> None:
        job = create(operator, aligned)
        second = operator.client.post(JOBS, json={"model": aligned.id, "metadata": {"a": "b"}})
        assert second.status_code == 409
        assert second.json()["error"]["code"] == "evaluation_running"
        assert operator.client.post(f"{JOBS}/{job['id']}/cancel").status_code == 200
        create(operator, aligned, metadata={"a": "b"})

    def test_a_retry_makes_no_second_job(self, operator: Tenant, aligned: ModelVersion) -> None:
        one = create(operator, aligned)
        two = operator.client.post(
            JOBS, json={"model": aligned.id}, headers={"x-stainless-retry-count": "1"}
        )
        assert two.json()["id"] == one["id"]

    def test_a_model_that_is_being_measured_is_not_deleted(
        self, operator: Tenant, aligned: ModelVersion
    ) -> None:
        create(operator, aligned)
        assert operator.client.delete(f"/v1/models/{aligned.id}").status_code == 409


class TestMeasured:
    @pytest.fixture
    def model(self, aligned: ModelVersion, place: Place, operator: Tenant) -> ModelVersion:
        version = place.version("t", VersionKind.TUNED, parent=aligned, project=operator.project)
        place.evaluation(version, harmful=2)
        place.session.commit()
        return version

    def test_the_job_shows_it_and_the_models_verdict_stays_whole(
        self, operator: Tenant, model: ModelVersion, place: Place
    ) -> None:
        before = operator.client.get(f"/v1/models/{model.id}").json()
        job = measured(place, operator, model, harmful=40)
        shown = operator.client.get(f"{JOBS}/{job.id}").json()
        assert shown["safety"]["harmful_score"]["percent"] == 40.0
        assert (shown["safety"]["gate"], shown["safety"]["policy_version"]) == ("released", None)
        assert shown["fine_tuned_model"] is None
        assert operator.client.get(f"/v1/models/{model.id}").json() == before

    def test_of_a_base_the_newest_measurement_speaks(
        self, operator: Tenant, base: ModelVersion, place: Place
    ) -> None:
        for harmful in (60, 55):
            measured(place, operator, base, harmful=harmful)
        shown = operator.client.get(f"/v1/models/{base.id}").json()
        assert shown["safety"]["harmful_score"]["percent"] == 55.0

    def test_kinds_do_not_mix(self, operator: Tenant, model: ModelVersion, place: Place) -> None:
        job = measured(place, operator, model, harmful=1)
        tune = place.job(operator.project, model)
        place.session.commit()
        assert [found["id"] for found in operator.client.get(JOBS).json()["data"]] == [job.id]
        assert operator.client.get(f"{JOBS}/{tune.id}").status_code == 404
        assert operator.client.get(f"/v1/certification/jobs/{job.id}").status_code == 404
        assert operator.client.get(f"{JOBS}/{job.id}/events").json()["data"]
        assert operator.client.post(f"{JOBS}/{job.id}/cancel").status_code == 409
