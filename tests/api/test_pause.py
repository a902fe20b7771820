"""Pausing and resuming over HTTP: who may, in which state, and what others see of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from api.sweeper import sweep
from models.base import utc_now
from models.job import Job, JobStatus, Stage, claim, hold, park
from models.job_checkpoint import resume_prefix
from models.model_version import ModelVersion
from models.settings import Settings
from tests.api.conftest import Place, SilentDoorbell, Tenant

JOBS = "/v1/fine_tuning/jobs"


def ask(tenant: Tenant, job: Job, verb: str) -> tuple[str, str]:
    """Ask for a change; give the status in OpenAI's words and in ours."""
    response = tenant.client.post(f"{JOBS}/{job.id}/{verb}")
    assert response.status_code == 200, response.text
    return response.json()["status"], response.json()["state"]


def conflict(tenant: Tenant, job: Job, verb: str) -> str:
    response = tenant.client.post(f"{JOBS}/{job.id}/{verb}")
    assert response.status_code == 409, response.text
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["code"] == "illegal_transition"
    return str(response.json()["error"]["message"])


class TestQueued:
    def test_is_paused_at_once_and_no_bell_wakes_it(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        place: Place,
        doorbell: SilentDoorbell,
        settings: Settings,
        app: object,
    ) -> None:
        job = place.job(customer.project, aligned)
        place.session.commit()
        assert ask(customer, job, "pause") == ("queued", "paused")
        assert claim(place.session, job.id, owner="w", lease_seconds=60) is None
        sweep(app.state.sessions, doorbell, settings)  # type: ignore[attr-defined]
        assert doorbell.rung == []
        place.session.refresh(job)
        assert job.status == JobStatus.PAUSED

    def test_resuming_queues_it_and_rings(
        self, customer: Tenant, aligned: ModelVersion, place: Place, doorbell: SilentDoorbell
    ) -> None:
        job = place.job(customer.project, aligned)
        ask(customer, job, "pause")
        assert ask(customer, job, "resume") == ("queued", "queued")
        assert doorbell.rung == [job.id]
        place.session.commit()
        assert claim(place.session, job.id, owner="w", lease_seconds=60) is not None


class TestRunning:
    @pytest.fixture
    def job(self, customer: Tenant, aligned: ModelVersion, place: Place) -> Job:
        job = place.job(customer.project, aligned)
        place.lease = claim(place.session, job.id, owner="w", lease_seconds=60)  # type: ignore[attr-defined]
        job.stage = Stage.TRAIN
        job.estimated_finish = utc_now()
        place.session.commit()
        return job

    def test_is_pausing_until_its_worker_lets_go(
        self, customer: Tenant, place: Place, job: Job
    ) -> None:
        assert ask(customer, job, "pause") == ("running", "pausing")
        assert "pausing already" in conflict(customer, job, "pause")
        park(place.session, hold(place.session, place.lease))  # type: ignore[attr-defined]
        place.session.commit()
        shown = customer.client.get(f"{JOBS}/{job.id}").json()
        assert (shown["status"], shown["state"], shown["stage"]) == ("queued", "paused", "train")
        assert shown["estimated_finish"] is None
        assert shown["finished_at"] is None
        assert "cannot become paused" in conflict(customer, job, "pause")

    def test_the_wish_can_be_withdrawn_before_the_worker_sees_it(
        self, customer: Tenant, place: Place, job: Job, doorbell: SilentDoorbell
    ) -> None:
        ask(customer, job, "pause")
        assert ask(customer, job, "resume") == ("running", "running")
        assert doorbell.rung == []
        assert not hold(place.session, place.lease).is_pausing  # type: ignore[attr-defined]

    def test_a_wish_withdrawn_after_the_worker_stopped_queues_the_job(
        self, customer: Tenant, place: Place, job: Job
    ) -> None:
        ask(customer, job, "pause")
        ask(customer, job, "resume")
        park(place.session, hold(place.session, place.lease))  # type: ignore[attr-defined]
        assert (job.status, job.rung_at) == (JobStatus.QUEUED, None)

    def test_a_cancel_wins_over_a_wish(self, customer: Tenant, place: Place, job: Job) -> None:
        ask(customer, job, "pause")
        assert ask(customer, job, "cancel") == ("cancelled", "cancelled")
        assert "cancelled" in conflict(customer, job, "resume")
        assert "cancelled" in conflict(customer, job, "pause")

    def test_a_worker_that_dies_while_pausing_leaves_a_paused_job(
        self,
        customer: Tenant,
        place: Place,
        job: Job,
        doorbell: SilentDoorbell,
        settings: Settings,
        app: object,
    ) -> None:
        ask(customer, job, "pause")
        place.session.refresh(job)
        job.lease_expires_at = utc_now() - timedelta(seconds=1)
        place.session.commit()
        sweep(app.state.sessions, doorbell, settings)  # type: ignore[attr-defined]
        place.session.refresh(job)
        assert (job.status, job.lost_leases) == (JobStatus.PAUSED, 1)
        assert job.lease_expires_at is None
        assert doorbell.rung == []


class TestWhoAndWhen:
    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_only_the_owner_and_operators_may(
        self,
        anonymous: TestClient,
        customer: Tenant,
        stranger: Tenant,
        operator: Tenant,
        aligned: ModelVersion,
        place: Place,
        verb: str,
    ) -> None:
        status = JobStatus.QUEUED if verb == "pause" else JobStatus.PAUSED
        one, two = (place.job(customer.project, aligned, status=status) for _ in range(2))
        place.session.commit()
        assert anonymous.post(f"{JOBS}/{one.id}/{verb}").status_code == 401
        assert stranger.client.post(f"{JOBS}/{one.id}/{verb}").status_code == 404
        ask(customer, one, verb)
        ask(operator, two, verb)

    @pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_what_has_ended_stays_ended(
        self, customer: Tenant, aligned: ModelVersion, place: Place, status: JobStatus, verb: str
    ) -> None:
        conflict(customer, place.job(customer.project, aligned, status=status), verb)

    def test_what_is_not_paused_cannot_be_resumed(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        conflict(customer, place.job(customer.project, aligned), "resume")

    def test_a_job_that_waits_for_a_person_is_not_paused(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        _, job = place.held(customer.project, aligned)
        assert "held for a person" in conflict(customer, job, "pause")
        conflict(customer, job, "resume")

    def test_a_paused_job_can_be_cancelled_and_leaves_nothing_to_go_on_from(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        job = place.job(customer.project, aligned, status=JobStatus.PAUSED)
        place.storage.put(f"{resume_prefix(job.id)}/step-00000001/state.json", b"{}")
        assert ask(customer, job, "cancel") == ("cancelled", "cancelled")
        assert not place.storage.exists(f"{resume_prefix(job.id)}/step-00000001/state.json")

    def test_a_paused_job_keeps_its_model_and_file_from_deletion(
        self, customer: Tenant, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        place.job(customer.project, aligned, status=JobStatus.PAUSED)
        place.session.commit()
        assert operator.client.delete(f"/v1/models/{aligned.id}").status_code == 409

    def test_an_unknown_verb_is_no_address(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        job = place.job(customer.project, aligned)
        assert customer.client.post(f"{JOBS}/{job.id}/stop").status_code == 404
