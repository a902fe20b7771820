"""Fine-tuning jobs over HTTP: who may make and see which, and what they look like."""

from __future__ import annotations

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from models.base import utc_now
from models.hyperparameters import Recipe
from models.job import Job, JobStatus, append_event, succeed
from models.methods import SafeGradConfig
from models.model_version import Gate, ModelVersion, VersionKind
from models.safety_set import HEADER
from models.tuning import AppliedProtection, TuningProtection
from tests.api.conftest import Place, SilentDoorbell, Tenant, rows, upload

JOBS = "/v1/fine_tuning/jobs"


def create(tenant: Tenant, model: ModelVersion, **facts: object) -> dict[str, object]:
    body = {"model": model.id, "training_file": upload(tenant), **facts}
    response = tenant.client.post(JOBS, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def refused(tenant: Tenant, **body: object) -> dict[str, object]:
    response = tenant.client.post(JOBS, json=body)
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


class TestCreate:
    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient) -> None:
        response = anonymous.post(JOBS, json={"model": "m", "training_file": "f"})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"

    def test_an_operator_key_alone_may_not_tune(self, operator: Tenant) -> None:
        response = operator.client.post(JOBS, json={"model": "m", "training_file": "f"})
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "insufficient_scope"

    def test_a_job_is_queued_and_the_bell_rung(
        self, customer: Tenant, aligned: ModelVersion, doorbell: SilentDoorbell, place: Place
    ) -> None:
        job = create(customer, aligned, suffix="mine", seed=7, metadata={"team": "a"})
        assert job["status"] == "queued"
        assert job["object"] == "fine_tuning.job"
        assert job["seed"] == 7
        assert job["metadata"] == {"team": "a"}
        assert job["hyperparameters"] == {
            "n_epochs": 1,
            "batch_size": 10,
            "learning_rate_multiplier": 1.0,
        }
        assert job["method"] == {
            "type": "supervised",
            "supervised": {"hyperparameters": job["hyperparameters"]},
        }
        assert job["error"] is None
        assert job["safety"] is None
        assert job["fine_tuned_model"] is None
        organization = str(job["organization_id"]).removeprefix("org-")
        assert str(job["result_model"]).startswith(f"ft:tiny:{organization}:mine:")
        assert doorbell.rung == [job["id"]]
        stored = place.session.scalars(select(Job)).one()
        assert stored.rung_at is not None

    def test_the_provider_s_protection_stands_in_the_recipe_and_its_rows_in_the_steps(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        place.protect(method={"name": "safegrad"}, safety_share=0.5, scales=[1, 0.5])
        job = create(customer, aligned)
        assert job["total_steps"] == 2  # 12 rows and 6 safety rows, 10 a step
        recipe = Recipe.model_validate(place.session.scalars(select(Job)).one().recipe)
        assert recipe.method == SafeGradConfig()
        assert recipe.tuning == TuningProtection(
            method=SafeGradConfig(), safety_share=0.5, scales=(1, 0.5)
        )

    def test_a_rate_above_the_provider_s_limit_is_refused(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        place.protect(max_learning_rate_multiplier=0.5)
        error = refused(
            customer,
            model=aligned.id,
            training_file=upload(customer),
            hyperparameters={"learning_rate_multiplier": 1},
        )
        assert (error["code"], error["param"]) == ("learning_rate_too_high", "hyperparameters")
        assert create(customer, aligned)["hyperparameters"]["learning_rate_multiplier"] == 0.5  # type: ignore[index]

    def test_a_model_without_its_safety_set_is_not_tuned(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        place.storage.delete(f"{aligned.safety_prefix}/{HEADER}")
        body = {"model": aligned.id, "training_file": upload(customer)}
        response = customer.client.post(JOBS, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "content_missing")
        assert place.session.scalars(select(Job)).first() is None

    def test_it_is_queued_while_the_broker_is_down(
        self, customer: Tenant, aligned: ModelVersion, doorbell: SilentDoorbell, place: Place
    ) -> None:
        doorbell.is_up = False
        assert create(customer, aligned)["status"] == "queued"
        assert place.session.scalars(select(Job)).one().rung_at is None

    @pytest.mark.parametrize(
        "where",
        [
            lambda chosen: {"hyperparameters": chosen},
            lambda chosen: {
                "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}}
            },
        ],
    )
    def test_hyperparameters_are_read_from_both_places(
        self, customer: Tenant, aligned: ModelVersion, place: Place, where: object
    ) -> None:
        assert callable(where)
        chosen = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
        job = create(customer, aligned, **where(chosen))
        assert job["hyperparameters"] == chosen
        recipe = Recipe.model_validate(place.session.scalars(select(Job)).one().recipe)
        assert recipe.train.steps == 6

    def test_contradicting_hyperparameters_are_refused(
        self, customer: Tenant, aligned: ModelVersion
    ) -> None:
        error = refused(
            customer,
            model=aligned.id,
            training_file="f",
            hyperparameters={"n_epochs": 1},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        )
        assert error["code"] == "unsupported"

    @pytest.mark.parametrize("kind", ["reinforcement", "magic"])
    def test_other_methods_are_refused_by_name(
        self, customer: Tenant, aligned: ModelVersion, kind: str
    ) -> None:
        error = refused(
            customer,
            model=aligned.id,
            training_file="f",
            method={"type": kind, "reinforcement": {}},
        )
        assert error["code"] == "unsupported_method"

    def test_integrations_are_kept_and_shown_where_the_stock_client_can_read_them(
        self, customer: Tenant, aligned: ModelVersion
    ) -> None:
        wandb = {"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}
        mlflow = {"type": "mlflow", "mlflow": {"experiment": "e"}}
        job = create(customer, aligned, integrations=[wandb, mlflow])
        assert job["integrations"] == [
            {
                "type": "wandb",
                "wandb": {"project": "p", "name": None, "entity": None, "tags": ["a"]},
            }
        ]
        assert job["further_integrations"] == [
            {"type": "mlflow", "mlflow": {"experiment": "e", "name": None, "tags": None}}
        ]
        assert create(customer, aligned, integrations=[])["integrations"] == []
        assert create(customer, aligned, integrations=None)["integrations"] == []

    @pytest.mark.parametrize(
        "wanted",
        [
            {"type": "wandb"},
            {"type": "wandb", "wandb": {}},
            {"type": "wandb", "wandb": {"project": "a/../b"}},
            {"type": "wandb", "wandb": {"project": "p" * 65}},
            {"type": "wandb", "wandb": {"project": "p", "tags": ["t"] * 17}},
            {"type": "wandb", "wandb": {"project": "p", "base_url": "http://169.254.169.254"}},
            {"type": "mlflow", "mlflow": {"tracking_uri": "http://127.0.0.1:5432"}},
            {"type": "tensorboard", "tensorboard": {}},
            1,
        ],
    )
    def test_an_integration_names_no_address_and_nothing_odd(
        self, customer: Tenant, aligned: ModelVersion, wanted: object
    ) -> None:
        error = refused(customer, model=aligned.id, training_file="f", integrations=[wanted])
        assert str(error["param"]).startswith("integrations")

    def test_whether_checkpoints_are_evaluated_is_asked_for(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        assert create(customer, aligned)["evaluate_checkpoints"] is False
        job = create(customer, aligned, evaluate_checkpoints=True)
        assert job["evaluate_checkpoints"] is True
        stored = place.session.get_one(Job, str(job["id"]))
        assert Recipe.model_validate(stored.recipe).evaluate_checkpoints

    def test_a_raw_base_is_refused_with_what_to_do(
        self, customer: Tenant, base: ModelVersion, aligned: ModelVersion
    ) -> None:
        error = refused(customer, model=base.id, training_file=upload(customer))
        assert error["code"] == "model_not_aligned"
        assert aligned.id in str(error["message"])

    def test_an_unreleased_model_is_refused_with_the_reasons(
        self, customer: Tenant, base: ModelVersion, place: Place
    ) -> None:
        bad = place.version("bad", VersionKind.ALIGNED, gate=Gate.BLOCKED, parent=base)
        response = customer.client.post(
            JOBS, json={"model": bad.id, "training_file": upload(customer)}
        )
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "model_blocked"
        assert "HS is too high" in response.json()["error"]["message"]

    def test_a_released_tuned_model_of_ones_own_can_be_tuned_on(
        self, customer: Tenant, stranger: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        own = place.version(
            "ft:tiny:a::1", VersionKind.TUNED, parent=aligned, project=customer.project
        )
        assert str(create(customer, own)["result_model"]).startswith("ft:tiny:")
        response = stranger.client.post(
            JOBS, json={"model": own.id, "training_file": upload(stranger)}
        )
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"

    def test_another_tenants_file_is_not_found(
        self, customer: Tenant, stranger: Tenant, aligned: ModelVersion
    ) -> None:
        theirs = upload(stranger)
        for field in ("training_file", "validation_file"):
            body = {"model": aligned.id, "training_file": upload(customer), field: theirs}
            assert customer.client.post(JOBS, json=body).status_code == 404

    def test_ten_rows_are_the_least(self, customer: Tenant, aligned: ModelVersion) -> None:
        few = upload(customer, rows(9))
        error = refused(customer, model=aligned.id, training_file=few)
        assert error["code"] == "invalid_n_examples"
        assert error["param"] == "training_file"
        ten = upload(customer, rows(10))
        body = {"model": aligned.id, "training_file": ten}
        assert customer.client.post(JOBS, json=body).status_code == 200

    @pytest.mark.parametrize(
        ("field", "value", "param"),
        [
            ("suffix", "", "suffix"),
            ("suffix", "a" * 65, "suffix"),
            ("suffix", "two words", "suffix"),
            ("suffix", "line\n", "suffix"),
            ("seed", -1, "seed"),
            ("seed", 2**31, "seed"),
            ("metadata", {"k": 1}, "metadata.k"),
            ("metadata", {str(i): "v" for i in range(17)}, "metadata"),
            ("metadata", {"k": "v" * 513}, "metadata.k"),
            ("hyperparameters", {"n_epochs": 0}, "hyperparameters.n_epochs"),
            ("hyperparameters", {"n_epochs": "many"}, "hyperparameters.n_epochs"),
            ("hyperparameters", {"batch_size": 257}, "hyperparameters.batch_size"),
            (
                "hyperparameters",
                {"learning_rate_multiplier": 1e9},
                "hyperparameters.learning_rate_multiplier",
            ),
            ("hyperparameters", {"lora_rank": 8}, "hyperparameters.lora_rank"),
            ("integrations", [1] * 6, "integrations"),
            ("misspelt", 1, "misspelt"),
            ("model", None, "model"),
        ],
    )
    def test_a_faulty_field_is_named(
        self, customer: Tenant, aligned: ModelVersion, field: str, value: object, param: str
    ) -> None:
        body = {"model": aligned.id, "training_file": "f", field: value}
        error = refused(customer, **body)
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"

    def test_a_missing_field_is_named(self, customer: Tenant) -> None:
        assert refused(customer, model="m")["param"] == "training_file"

    def test_a_character_that_cannot_be_stored_is_a_fault_of_the_request(
        self, customer: Tenant, aligned: ModelVersion
    ) -> None:
        body = {"model": aligned.id, "training_file": upload(customer), "metadata": {"k": "\x00"}}
        assert refused(customer, **body)["type"] == "invalid_request_error"


class TestReplay:
    def test_the_same_idempotency_key_makes_one_job(
        self, customer: Tenant, aligned: ModelVersion, doorbell: SilentDoorbell
    ) -> None:
        body = {"model": aligned.id, "training_file": upload(customer)}
        headers = {"idempotency-key": "k1"}
        one = customer.client.post(JOBS, json=body, headers=headers).json()
        two = customer.client.post(JOBS, json=body, headers=headers).json()
        assert one["id"] == two["id"]
        assert doorbell.rung == [one["id"]]

    def test_a_key_for_another_request_is_a_conflict(
        self, customer: Tenant, aligned: ModelVersion
    ) -> None:
        body = {"model": aligned.id, "training_file": upload(customer)}
        headers = {"idempotency-key": "k1"}
        customer.client.post(JOBS, json=body, headers=headers)
        response = customer.client.post(JOBS, json={**body, "seed": 1}, headers=headers)
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "idempotency_key_reused"
        assert response.headers["x-should-retry"] == "false"

    def test_a_retry_with_other_integrations_is_another_job(
        self, customer: Tenant, aligned: ModelVersion
    ) -> None:
        wandb = {"type": "wandb", "wandb": {"project": "p"}}
        body = {"model": aligned.id, "training_file": upload(customer)}
        retry = {"x-stainless-retry-count": "1"}
        ids = [
            customer.client.post(JOBS, json={**body, **more}, headers=retry).json()["id"]
            for more in (
                {},
                {"integrations": [wandb]},
                {"integrations": [wandb], "evaluate_checkpoints": True},
                {"integrations": [wandb]},
            )
        ]
        assert len(set(ids)) == 3
        assert ids[1] == ids[3]

    def test_keys_of_two_tenants_do_not_meet(
        self, customer: Tenant, stranger: Tenant, aligned: ModelVersion
    ) -> None:
        headers = {"idempotency-key": "k1"}
        ids = {
            tenant.client.post(
                JOBS,
                json={"model": aligned.id, "training_file": upload(tenant)},
                headers=headers,
            ).json()["id"]
            for tenant in (customer, stranger)
        }
        assert len(ids) == 2

    def test_the_clients_own_retry_makes_no_second_job(
        self, customer: Tenant, aligned: ModelVersion
    ) -> None:
        body = {"model": aligned.id, "training_file": upload(customer)}
        one = customer.client.post(JOBS, json=body, headers={"x-stainless-retry-count": "0"})
        retried = customer.client.post(JOBS, json=body, headers={"x-stainless-retry-count": "1"})
        again = customer.client.post(JOBS, json=body, headers={"x-stainless-retry-count": "0"})
        assert retried.json()["id"] == one.json()["id"]
        assert again.json()["id"] != one.json()["id"]

    def test_a_retry_after_the_window_is_a_new_job(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        body = {"model": aligned.id, "training_file": upload(customer)}
        one = customer.client.post(JOBS, json=body).json()
        job = place.session.get_one(Job, one["id"])
        job.created_at = utc_now() - timedelta(minutes=16)
        place.session.commit()
        retried = customer.client.post(JOBS, json=body, headers={"x-stainless-retry-count": "2"})
        assert retried.json()["id"] != one["id"]

    def test_a_retry_of_a_request_that_never_arrived_makes_the_job(
        self, customer: Tenant, aligned: ModelVersion
    ) -> None:
        body = {"model": aligned.id, "training_file": upload(customer)}
        response = customer.client.post(JOBS, json=body, headers={"x-stainless-retry-count": "1"})
        assert response.status_code == 200

    @pytest.mark.parametrize("key", ["", "k" * 256])
    def test_an_odd_key_is_refused(self, customer: Tenant, aligned: ModelVersion, key: str) -> None:
        response = customer.client.post(
            JOBS,
            json={"model": aligned.id, "training_file": "f"},
            headers={"idempotency-key": key},
        )
        assert response.json()["error"]["code"] == "invalid_idempotency_key"


class TestList:
    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient) -> None:
        assert anonymous.get(JOBS).status_code == 401

    def test_pages_hold_every_job_once_newest_first(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        made = [place.job(customer.project, aligned).id for _ in range(5)]
        seen: list[str] = []
        after = None
        while True:
            params = {"limit": 2} | ({"after": after} if after else {})
            page = customer.client.get(JOBS, params=params).json()
            seen += [job["id"] for job in page["data"]]
            if not page["has_more"]:
                break
            after = seen[-1]
        assert seen == made[::-1]

    def test_tenants_see_their_own_and_operators_all(
        self,
        customer: Tenant,
        stranger: Tenant,
        operator: Tenant,
        aligned: ModelVersion,
        place: Place,
    ) -> None:
        place.job(customer.project, aligned)
        place.job(stranger.project, aligned)
        assert len(customer.client.get(JOBS).json()["data"]) == 1
        assert len(operator.client.get(JOBS).json()["data"]) == 2

    def test_labels_filter(self, customer: Tenant, aligned: ModelVersion, place: Place) -> None:
        labelled = place.job(customer.project, aligned, tags={"team": "a", "x": "1"})
        bare = place.job(customer.project, aligned)
        found = customer.client.get(JOBS, params={"metadata[team]": "a"}).json()["data"]
        assert [job["id"] for job in found] == [labelled.id]
        assert not customer.client.get(JOBS, params={"metadata[team]": "b"}).json()["data"]
        found = customer.client.get(JOBS, params={"metadata": "null"}).json()["data"]
        assert [job["id"] for job in found] == [bare.id]

    @pytest.mark.parametrize("limit", ["0", "1001", "x"])
    def test_an_odd_limit_is_named(self, customer: Tenant, limit: str) -> None:
        response = customer.client.get(JOBS, params={"limit": limit})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "limit"

    def test_after_an_unknown_job_is_not_found(self, customer: Tenant) -> None:
        assert customer.client.get(JOBS, params={"after": "ftjob-x"}).status_code == 404


class TestRetrieve:
    def test_another_tenants_job_is_not_found(
        self,
        customer: Tenant,
        stranger: Tenant,
        operator: Tenant,
        aligned: ModelVersion,
        place: Place,
    ) -> None:
        job = place.job(customer.project, aligned)
        for path in ("", "/events", "/checkpoints"):
            address = f"{JOBS}/{job.id}{path}"
            assert customer.client.get(address).status_code == 200
            assert operator.client.get(address).status_code == 200
            assert stranger.client.get(address).json()["error"]["code"] == "job_not_found"

    def test_a_held_job_shows_the_evidence_but_no_model(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        _, job = place.held(customer.project, aligned)
        shown = customer.client.get(f"{JOBS}/{job.id}").json()
        assert (shown["status"], shown["stage"]) == ("running", "review")
        assert shown["fine_tuned_model"] is None
        assert shown["safety"]["gate"] == "held"
        assert shown["safety"]["reasons"] == ["HS is too high."]
        assert shown["safety"]["policy_version"] == 1
        assert shown["safety"]["harmful_score"]["percent"] == 15.0
        assert shown["safety"]["base"]["model"] == aligned.id
        assert shown["safety"]["base"]["harmful_score"]["percent"] == 2.0
        assert shown["safety"]["protection"] is None

    def test_shows_how_the_job_was_protected(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        version, job = place.held(customer.project, aligned)
        applied = AppliedProtection(tuning=TuningProtection(safety_share=0.5), safety_rows=6)
        version.recipe = {**version.recipe, "protection": applied.model_dump(mode="json")}
        place.session.commit()
        shown = customer.client.get(f"{JOBS}/{job.id}").json()["safety"]["protection"]
        assert shown["safety_rows"] == 6
        assert shown["tuning"]["safety_share"] == 0.5

    def test_a_released_job_names_its_model(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        version, job = place.held(customer.project, aligned)
        version.gate = Gate.RELEASED
        succeed(place.session, job)
        place.session.commit()
        shown = customer.client.get(f"{JOBS}/{job.id}").json()
        assert shown["fine_tuned_model"] == version.id
        assert shown["finished_at"] >= shown["created_at"]

    def test_a_nul_in_the_address_is_no_crash(self, customer: Tenant) -> None:
        assert customer.client.get(f"{JOBS}/a%00b").status_code in (400, 404)


class TestCancel:
    def test_only_the_owner_and_operators_may(
        self,
        anonymous: TestClient,
        customer: Tenant,
        stranger: Tenant,
        operator: Tenant,
        aligned: ModelVersion,
        place: Place,
    ) -> None:
        one, two = (place.job(customer.project, aligned) for _ in range(2))
        assert anonymous.post(f"{JOBS}/{one.id}/cancel").status_code == 401
        assert stranger.client.post(f"{JOBS}/{one.id}/cancel").status_code == 404
        assert customer.client.post(f"{JOBS}/{one.id}/cancel").json()["status"] == "cancelled"
        assert operator.client.post(f"{JOBS}/{two.id}/cancel").json()["status"] == "cancelled"

    def test_an_ended_job_is_a_conflict_that_clients_do_not_retry(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        job = place.job(customer.project, aligned, status=JobStatus.SUCCEEDED)
        response = customer.client.post(f"{JOBS}/{job.id}/cancel")
        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"

    def test_a_held_model_stays_unused_when_its_job_is_cancelled(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        version, job = place.held(customer.project, aligned)
        assert customer.client.post(f"{JOBS}/{job.id}/cancel").json()["status"] == "cancelled"
        place.session.refresh(version)
        assert version.gate == Gate.BLOCKED
        assert "cancelled" in version.gate_reasons[-1]


class TestEvents:
    def test_pages_are_stable_while_events_arrive(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        job = place.job(customer.project, aligned)
        for step in range(1, 5):
            append_event(place.session, job, f"Step {step}", type="metrics", data={"step": step})
        place.session.commit()
        events = f"{JOBS}/{job.id}/events"
        first = customer.client.get(events, params={"limit": 2}).json()
        append_event(place.session, job, "Later.")
        place.session.commit()
        rest = customer.client.get(events, params={"after": first["data"][-1]["id"]}).json()
        messages = [event["message"] for event in first["data"] + rest["data"]]
        assert messages == ["Step 4", "Step 3", "Step 2", "Step 1", "Created."]
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert first["data"][0]["data"] == {"step": 4}
        assert first["data"][0]["type"] == "metrics"

    def test_after_another_jobs_event_is_refused(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        one, two = (place.job(customer.project, aligned) for _ in range(2))
        foreign = customer.client.get(f"{JOBS}/{two.id}/events").json()["data"][0]["id"]
        response = customer.client.get(f"{JOBS}/{one.id}/events", params={"after": foreign})
        assert response.status_code == 400
