"""Certification over HTTP: for operators, with the cost told beforehand, and certificates to read."""

from __future__ import annotations

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from models.base import utc_now
from models.certification import CertificationPlan
from models.certification_plans import DRILL, PLANS, Drill
from models.job import Job, JobKind, JobStatus
from models.model_version import ModelVersion, VersionKind
from tests.api.certificates import SMALL_PLAN, certify, supply
from tests.api.conftest import Place, SilentDoorbell, Tenant

JOBS = "/v1/certification/jobs"


def create(operator: Tenant, model: ModelVersion, **facts: object) -> dict[str, object]:
    response = operator.client.post(JOBS, json={"model": model.id, **facts})
    assert response.status_code == 200, response.text
    return dict(response.json())


def certification(job: dict[str, object]) -> dict[str, object]:
    method = job["method"]
    assert isinstance(method, dict)
    return dict(method["certification"])


class TestWho:
    def test_only_operators(
        self, anonymous: TestClient, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        job = place.job(customer.project, aligned, kind=JobKind.CERTIFY, recipe=SMALL_PLAN)
        for method, path in (
            ("POST", JOBS),
            ("GET", JOBS),
            ("GET", f"{JOBS}/{job.id}"),
            ("GET", f"{JOBS}/{job.id}/events"),
            ("POST", f"{JOBS}/{job.id}/cancel"),
            ("GET", "/v1/certification/plans"),
            ("GET", f"/v1/models/{aligned.id}/certificate"),
        ):
            content = {"json": {"model": aligned.id}} if (method, path) == ("POST", JOBS) else {}
            assert anonymous.request(method, path, **content).status_code == 401
            assert customer.client.request(method, path, **content).status_code == 403


class TestPlans:
    def test_each_says_what_it_costs(self, operator: Tenant) -> None:
        plans = operator.client.get("/v1/certification/plans").json()["data"]
        assert [plan["id"] for plan in plans] == ["quick", "standard", "full"]
        quick = plans[0]
        assert quick["hash"] == PLANS["quick"].hash
        assert quick["cost_of_adapter"]["runs"] == 33
        assert CertificationPlan.model_validate(quick["plan"]) == PLANS["quick"]


class TestCreate:
    def test_the_plan_is_stored_and_its_cost_is_told(
        self, operator: Tenant, aligned: ModelVersion, place: Place, doorbell: SilentDoorbell
    ) -> None:
        supply(place, aligned)
        job = create(operator, aligned)
        assert (job["kind"], job["model"], job["result_model"]) == (
            "certify",
            aligned.id,
            aligned.id,
        )
        assert job["total_steps"] == 2_640
        facts = certification(job)
        assert facts["plan_hash"] == PLANS["quick"].hash
        assert facts["cost"] == PLANS["quick"].cost(is_adapter=True).model_dump()
        stored = place.session.scalars(select(Job)).one()
        assert CertificationPlan.model_validate(stored.recipe) == PLANS["quick"]
        assert doorbell.rung == [job["id"]]

    def test_the_cost_is_that_of_this_model(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        aligned.source = {"prefix": "m/x", "form": "weights"}
        place.session.commit()
        supply(place, aligned)
        job = create(operator, aligned, plan="standard")
        assert job["total_steps"] == PLANS["standard"].cost(is_adapter=False).steps
        assert certification(job)["cost"] != PLANS["standard"].cost(is_adapter=True).model_dump()

    def test_a_plan_of_ones_own(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        supply(place, aligned, attack=10, customer=1)
        job = create(operator, aligned, plan=SMALL_PLAN, metadata={"for": "release"})
        assert certification(job)["plan"] == "mine"
        assert job["total_steps"] == 12
        assert job["metadata"] == {"for": "release"}

    @pytest.mark.parametrize(
        "plan",
        [
            "enormous",
            {},
            {**SMALL_PLAN, "seeds": [0]},
            {**SMALL_PLAN, "harmful_prompts": 10**9},
            {**SMALL_PLAN, "customers": [{"family": "pure", "steps": 10**9}]},
            {**SMALL_PLAN, "secret": 1},
        ],
    )
    def test_a_faulty_plan_is_named(
        self, operator: Tenant, aligned: ModelVersion, place: Place, plan: object
    ) -> None:
        supply(place, aligned)
        response = operator.client.post(JOBS, json={"model": aligned.id, "plan": plan})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("plan")

    def test_a_safety_set_without_rows_is_refused_by_name(
        self, operator: Tenant, aligned: ModelVersion, place: Place, doorbell: SilentDoorbell
    ) -> None:
        supply(place, aligned)
        place.storage.delete(f"{aligned.safety_prefix}/attack.jsonl")
        response = operator.client.post(JOBS, json={"model": aligned.id})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "no_certification_rows"
        assert "has no attack.jsonl:" in error["message"]
        assert doorbell.rung == []

    def test_a_safety_set_with_too_few_rows_too(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        supply(place, aligned, attack=100)
        response = operator.client.post(JOBS, json={"model": aligned.id})
        assert response.json()["error"]["code"] == "too_few_certification_rows"
        assert "attack.jsonl, which has 100" in response.json()["error"]["message"]

    def test_only_aligned_models(
        self, operator: Tenant, base: ModelVersion, aligned: ModelVersion, place: Place
    ) -> None:
        tuned = place.version("t", VersionKind.TUNED, parent=aligned, project=operator.project)
        place.session.commit()
        for model in (base, tuned):
            response = operator.client.post(JOBS, json={"model": model.id})
            assert response.json()["error"]["code"] == "model_not_aligned"
        assert operator.client.post(JOBS, json={"model": "none"}).status_code == 404

    def test_one_at_a_time_for_each_model(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        supply(place, aligned)
        job = create(operator, aligned)
        second = operator.client.post(JOBS, json={"model": aligned.id, "plan": "standard"})
        assert second.status_code == 409
        assert second.json()["error"]["code"] == "certification_running"
        assert second.headers["x-should-retry"] == "false"
        assert operator.client.post(f"{JOBS}/{job['id']}/cancel").status_code == 200
        create(operator, aligned, plan="standard")

    def test_a_retry_makes_no_second_job(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        supply(place, aligned)
        one = create(operator, aligned)
        two = operator.client.post(
            JOBS, json={"model": aligned.id}, headers={"x-stainless-retry-count": "1"}
        )
        assert two.json()["id"] == one["id"]

    def test_a_model_that_is_being_certified_is_not_deleted(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        supply(place, aligned)
        create(operator, aligned)
        assert operator.client.delete(f"/v1/models/{aligned.id}").status_code == 409


class TestJobs:
    def test_kinds_do_not_mix_and_an_ended_job_is_not_cancelled(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        ended = certify(place, aligned).job_id
        tune = place.job(operator.project, aligned)
        place.session.commit()
        assert [j["id"] for j in operator.client.get(JOBS).json()["data"]] == [ended]
        assert operator.client.get(f"{JOBS}/{tune.id}").status_code == 404
        assert operator.client.get(f"/v1/fine_tuning/jobs/{ended}").status_code == 404
        assert operator.client.get(f"{JOBS}/{ended}/events").json()["data"]
        response = operator.client.post(f"{JOBS}/{ended}/cancel")
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "illegal_transition"

    def test_a_failed_job_says_why(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        job = place.job(
            operator.project,
            aligned,
            kind=JobKind.CERTIFY,
            status=JobStatus.FAILED,
            recipe=SMALL_PLAN,
            error_code="judge_failed",
            error_message="The judge failed.",
        )
        place.session.commit()
        assert operator.client.get(f"{JOBS}/{job.id}").json()["error"]["code"] == "judge_failed"


class TestCertificate:
    @pytest.mark.parametrize(
        ("form", "media_type", "start"),
        [
            ("", "application/json", b'{"schema"'),
            ("?format=json", "application/json", b'{"schema"'),
            ("?format=html", "text/html; charset=utf-8", b"<!doctype html>"),
            ("?format=png", "image/png", b"\x89PNG"),
        ],
    )
    def test_is_read_in_three_forms(
        self,
        operator: Tenant,
        aligned: ModelVersion,
        place: Place,
        form: str,
        media_type: str,
        start: bytes,
    ) -> None:
        certify(place, aligned)
        response = operator.client.get(f"/v1/models/{aligned.id}/certificate{form}")
        assert response.status_code == 200
        assert response.headers["content-type"] == media_type
        assert response.content.startswith(start)
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"

    def test_the_newest_one_counts(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        new = certify(place, aligned)
        certify(place, aligned, created_at=utc_now() - timedelta(days=1))
        model = operator.client.get(f"/v1/models/{aligned.id}").json()
        assert model["safety"]["certificate"]["id"] == new.id

    def test_its_summary_stands_beside_the_model_and_changes_no_gate(
        self, customer: Tenant, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        before = operator.client.get(f"/v1/models/{aligned.id}").json()
        assert before["safety"]["certificate"] is None
        stored = certify(place, aligned)
        for tenant in (customer, operator):
            model = tenant.client.get(f"/v1/models/{aligned.id}").json()
            summary = model["safety"]["certificate"]
            assert summary["titer"]["steps"] == 40
            assert summary["worst_case"]["harmful_score"]["percent"] == 34.0
            assert summary["job"] == stored.job_id
            assert (model["gate"], model["gate_reasons"]) == (
                before["gate"],
                before["gate_reasons"],
            )

    def test_a_model_without_one_says_so(
        self, operator: Tenant, base: ModelVersion, aligned: ModelVersion
    ) -> None:
        for model, code in (
            (aligned.id, "certificate_not_found"),
            (base.id, "certificate_not_found"),
            ("none", "model_not_found"),
        ):
            response = operator.client.get(f"/v1/models/{model}/certificate")
            assert response.status_code == 404
            assert response.json()["error"]["code"] == code

    def test_another_form_is_refused_by_name(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        certify(place, aligned)
        response = operator.client.get(f"/v1/models/{aligned.id}/certificate?format=pdf")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "format"

    def test_a_name_may_hold_slashes_and_none_may_hide_a_certificate(
        self, operator: Tenant, place: Place
    ) -> None:
        base = place.version("org/base", VersionKind.BASE)
        hardened = place.version("org/hard", VersionKind.ALIGNED, parent=base)
        certify(place, hardened)
        for name in ("org/hard", "org%2Fhard"):
            assert operator.client.get(f"/v1/models/{name}/certificate").status_code == 200
        body = {"model": base.id, "method": {"name": "sft"}, "name": "org/hard/certificate"}
        response = operator.client.post("/v1/alignment/jobs", json=body)
        assert response.json()["error"]["code"] == "model_name_reserved"


class TestDrill:
    def test_makes_a_job_with_a_plan_of_its_own(
        self, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        supply(place, aligned)
        asked = {"families": ["pure", "identity"], "steps": 20}
        job = create(operator, aligned, drill=asked)
        told = certification(job)
        plan = Drill.model_validate(asked).plan()
        assert (told["plan"], told["plan_hash"]) == (DRILL, plan.hash)

    @pytest.mark.parametrize(
        "facts",
        [
            {"plan": "quick", "drill": {}},
            {"drill": {"families": ["mayhem"]}},
            {"drill": {"steps": 100_000}},
        ],
    )
    def test_a_faulty_one_is_refused(
        self, operator: Tenant, aligned: ModelVersion, place: Place, facts: dict[str, object]
    ) -> None:
        supply(place, aligned)
        response = operator.client.post(JOBS, json={"model": aligned.id, **facts})
        assert response.status_code == 400

    def test_what_it_found_is_read_by_its_job_and_is_no_certificate(
        self, operator: Tenant, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        stored = certify(place, aligned)
        stored.summary = {**stored.summary, "plan": DRILL}
        place.session.commit()
        path = f"/v1/models/{aligned.id}/certificate"
        assert operator.client.get(path).status_code == 404
        seen = customer.client.get(f"/v1/models/{aligned.id}").json()
        assert seen["safety"]["certificate"] is None
        assert operator.client.get(path, params={"job": stored.job_id}).status_code == 200
        missing = operator.client.get(path, params={"job": "ftjob-none"})
        assert (missing.status_code, missing.json()["error"]["param"]) == (404, "job")
