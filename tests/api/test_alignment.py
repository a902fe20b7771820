"""Alignment jobs over HTTP: for operators, and made of the same parts as every job."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from models.hyperparameters import Recipe
from models.job import Job, JobKind, JobStatus
from models.methods import BoosterConfig, SftConfig, TiterConfig
from models.model_version import ModelVersion
from tests.api.conftest import Place, SilentDoorbell, Tenant

JOBS = "/v1/alignment/jobs"


def create(operator: Tenant, base: ModelVersion, **facts: object) -> dict[str, object]:
    body = {"model": base.id, "method": {"name": "booster"}, **facts}
    response = operator.client.post(JOBS, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


class TestWho:
    def test_only_operators(
        self, anonymous: TestClient, customer: Tenant, base: ModelVersion, place: Place
    ) -> None:
        job = place.job(customer.project, base, kind=JobKind.ALIGN)
        body = {"model": base.id, "method": {"name": "sft"}}
        for method, path in (
            ("POST", ""),
            ("GET", ""),
            ("GET", f"/{job.id}"),
            ("GET", f"/{job.id}/events"),
            ("POST", f"/{job.id}/cancel"),
        ):
            content = {"json": body} if path == "" and method == "POST" else {}
            assert anonymous.request(method, JOBS + path, **content).status_code == 401
            assert customer.client.request(method, JOBS + path, **content).status_code == 403


class TestCreate:
    def test_without_a_method_it_is_titers_own_in_full_parameters(
        self, operator: Tenant, base: ModelVersion, place: Place
    ) -> None:
        response = operator.client.post(JOBS, json={"model": base.id})
        assert response.json()["result_model"] == "tiny-titer"
        recipe = Recipe.model_validate(place.session.scalars(select(Job)).one().recipe)
        assert (recipe.method, recipe.parameters) == (TiterConfig(), "full")

    def test_the_recipe_is_complete(
        self, operator: Tenant, base: ModelVersion, place: Place, doorbell: SilentDoorbell
    ) -> None:
        job = create(
            operator,
            base,
            method={"name": "booster", "lambda": 7, "alpha": 0.01},
            hyperparameters={"steps": 30, "learning_rate": 0.002},
            seed=3,
        )
        assert job["kind"] == "align"
        assert job["result_model"] == "tiny-booster"
        assert job["training_file"] == ""
        assert job["seed"] == 3
        stored = place.session.scalars(select(Job)).one()
        recipe = Recipe.model_validate(stored.recipe)
        assert isinstance(recipe.method, BoosterConfig)
        assert (recipe.method.lambda_, recipe.method.alpha) == (7, 0.01)
        assert (recipe.train.steps, recipe.train.learning_rate, recipe.train.seed) == (30, 0.002, 3)
        assert doorbell.rung == [job["id"]]

    def test_sft_is_a_method_too(self, operator: Tenant, base: ModelVersion, place: Place) -> None:
        assert create(operator, base, method={"name": "sft"})["result_model"] == "tiny-sft"
        recipe = Recipe.model_validate(place.session.scalars(select(Job)).one().recipe)
        assert recipe.method == SftConfig()

    @pytest.mark.parametrize(
        ("facts", "param"),
        [
            ({"method": {"name": "magic"}}, "method"),
            ({"method": {"name": "booster", "lambda": -1}}, "method.lambda"),
            ({"method": {"name": "booster", "alpha": 0}}, "method.alpha"),
            ({"method": {"name": "sft", "lambda": 1}}, "method.lambda"),
            ({"hyperparameters": {"steps": 0}}, "hyperparameters.steps"),
            ({"hyperparameters": {"lora": {"r": 0}}}, "hyperparameters.lora.r"),
            ({"name": "-odd"}, "name"),
            ({"name": "a:b"}, "name"),
            ({"name": "a//b"}, "name"),
        ],
    )
    def test_a_faulty_field_is_named(
        self, operator: Tenant, base: ModelVersion, facts: dict[str, object], param: str
    ) -> None:
        body = {"model": base.id, "method": {"name": "sft"}, **facts}
        response = operator.client.post(JOBS, json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param

    def test_an_aligned_model_is_aligned_further_as_what_it_is(
        self, operator: Tenant, aligned: ModelVersion
    ) -> None:
        body = {"model": aligned.id, "method": {"name": "booster"}, "name": "twice"}
        created = operator.client.post(JOBS, json=body).json()
        assert (created["model"], created["result_model"]) == (aligned.id, "twice")
        body = {"model": aligned.id, "method": {"name": "titer"}, "name": "thrice"}
        error = operator.client.post(JOBS, json=body).json()["error"]
        assert (error["code"], error["param"]) == (
            "parameters_differ",
            "hyperparameters.parameters",
        )

    def test_a_customers_model_is_not_aligned(
        self, operator: Tenant, place: Place, aligned: ModelVersion
    ) -> None:
        version, _ = place.held(operator.project, aligned)
        body = {"model": version.id, "method": {"name": "sft"}}
        response = operator.client.post(JOBS, json=body)
        assert response.json()["error"]["code"] == "model_not_a_base"

    def test_an_unknown_base_is_not_found(self, operator: Tenant) -> None:
        response = operator.client.post(JOBS, json={"model": "x", "method": {"name": "sft"}})
        assert response.status_code == 404

    def test_a_models_name_is_given_once(self, operator: Tenant, aligned: ModelVersion) -> None:
        body = {"model": "tiny", "method": {"name": "sft"}, "name": aligned.id}
        response = operator.client.post(JOBS, json=body)
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "model_name_taken"

    def test_a_live_job_keeps_its_name_and_an_ended_one_does_not(
        self, operator: Tenant, base: ModelVersion
    ) -> None:
        job = create(operator, base)
        body = {"model": base.id, "method": {"name": "booster"}}
        assert operator.client.post(JOBS, json=body).status_code == 409
        assert operator.client.post(f"{JOBS}/{job['id']}/cancel").status_code == 200
        assert operator.client.post(JOBS, json=body).status_code == 200

    def test_a_retry_makes_no_second_job(self, operator: Tenant, base: ModelVersion) -> None:
        body = {"model": base.id, "method": {"name": "booster"}}
        one = operator.client.post(JOBS, json=body).json()
        two = operator.client.post(JOBS, json=body, headers={"x-stainless-retry-count": "1"})
        assert two.json()["id"] == one["id"]


class TestReading:
    def test_the_two_kinds_do_not_mix(
        self, operator: Tenant, base: ModelVersion, aligned: ModelVersion, place: Place
    ) -> None:
        align = place.job(operator.project, base, kind=JobKind.ALIGN)
        tune = place.job(operator.project, aligned)
        place.session.commit()
        for address, own, other in (
            (JOBS, align, tune),
            ("/v1/fine_tuning/jobs", tune, align),
        ):
            assert [j["id"] for j in operator.client.get(address).json()["data"]] == [own.id]
            assert operator.client.get(f"{address}/{own.id}").status_code == 200
            assert operator.client.get(f"{address}/{own.id}/events").json()["data"]
            assert operator.client.get(f"{address}/{other.id}").status_code == 404
            assert operator.client.post(f"{address}/{other.id}/cancel").status_code == 404

    def test_an_ended_job_cannot_be_cancelled(
        self, operator: Tenant, base: ModelVersion, place: Place
    ) -> None:
        job = place.job(operator.project, base, kind=JobKind.ALIGN, status=JobStatus.FAILED)
        place.session.commit()
        response = operator.client.post(f"{JOBS}/{job.id}/cancel")
        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"
