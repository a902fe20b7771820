"""The contract with the stock client, strictly validated; tenants, bounds, tests, redelivery."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import AsyncOpenAI, OpenAI
from pydantic import SecretStr
from sqlalchemy import delete, select

from api.webhooks.service import MAX_ENDPOINTS
from models.api_key import Project
from models.base import utc_now
from models.model_version import ModelVersion
from models.scope import Scope
from models.settings import Settings
from models.webhook import (
    MAX_ATTEMPTS,
    DeliveryStatus,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookEventType,
    publish,
)
from tests.api.conftest import Place, Tenant
from tests.api.server import serve
from tests.api.webhooks.receiver import receiving

# Each test starts a server.
pytestmark = pytest.mark.long

FAILED = WebhookEventType.FINETUNE_FAILED
URL = "https://example.com/hook"
ASKED: dict[str, object] = {"name": "hook", "url": URL, "event_types": [FAILED.value]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"webhook_key": SecretStr("k" * 32), "webhook_allow_private": True}
    )


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    with serve(app) as address:
        yield address


@pytest.fixture
def project(place: Place) -> Project:
    return place.project()


@pytest.fixture
def token(place: Place, project: Project) -> str:
    token = place.key(project, Scope.CUSTOMER)
    place.session.commit()
    return token


@pytest.fixture
def client(address: str, token: str) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{address}/v1",
        api_key=token,
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


def make(tenant: Tenant, **changed: object) -> dict[str, object]:
    response = tenant.client.post("/v1/webhook_endpoints", json={**ASKED, **changed})
    assert response.status_code == 200, response.text
    return dict(response.json())


class TestStockClient:
    def test_create_list_retrieve_update_delete(self, client: OpenAI) -> None:
        hooks = client.webhooks
        made = hooks.create(name="one", url=URL, event_types=["fine_tuning.job.failed"])
        assert made.object == "webhook_endpoint"
        assert made.signing_secret.startswith("whsec_")
        assert made.signing_secret_hint == f"whsec_...{made.signing_secret[-4:]}"
        assert made.updated_at == made.created_at
        second = hooks.create(name="two", url=URL, event_types=["fine_tuning.job.succeeded"])
        assert [hook.id for hook in hooks.list(limit=1)] == [second.id, made.id]
        found = hooks.retrieve(made.id)
        assert (found.name, found.url, found.event_types) == ("one", URL, [FAILED])
        assert "signing_secret" not in (found.model_extra or {})
        changed = hooks.update(made.id, name="uno", event_types=["fine_tuning.job.succeeded"])
        assert (changed.name, changed.url) == ("uno", URL)
        assert changed.event_types == ["fine_tuning.job.succeeded"]
        assert hooks.delete(made.id).deleted is True
        with pytest.raises(openai.NotFoundError) as caught:
            hooks.retrieve(made.id)
        assert caught.value.code == "webhook_endpoint_not_found"

    def test_event_types(self, client: OpenAI) -> None:
        listed = client.webhooks.event_types.list().data
        assert listed[:3] == [
            "fine_tuning.job.succeeded",
            "fine_tuning.job.failed",
            "fine_tuning.job.cancelled",
        ]
        assert all(type.startswith("titer.") for type in listed[3:])
        # Each of them can be asked for.
        client.webhooks.create(name="all", url=URL, event_types=listed)  # type: ignore[arg-type]

    def test_a_sample_arrives_signed(self, client: OpenAI) -> None:
        with receiving(202) as receiver:
            made = client.webhooks.create(
                name="x", url=receiver.url, event_types=["fine_tuning.job.failed"]
            )
            result = client.webhooks.test(made.id, event_type="fine_tuning.job.succeeded")
        assert (result.status_code, result.success) == (202, True)
        assert result.webhook_endpoint_id == made.id
        event = receiver.received[0].unwrap(made.signing_secret)
        assert event.type == result.event_type == "fine_tuning.job.succeeded"
        assert event.data.test is True  # type: ignore[union-attr]

    def test_rotation(self, client: OpenAI) -> None:
        with receiving() as receiver:
            made = client.webhooks.create(
                name="x", url=receiver.url, event_types=["fine_tuning.job.failed"]
            )
            kept = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
            client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
            dropped = client.webhooks.rotate_secret(made.id)
            client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
        first, second = receiver.received
        for secret in (made.signing_secret, kept.signing_secret):
            first.unwrap(secret)
            with pytest.raises(openai.InvalidWebhookSignatureError):
                second.unwrap(secret)
        second.unwrap(dropped.signing_secret)
        assert dropped.signing_secret_hint == client.webhooks.retrieve(made.id).signing_secret_hint

    def test_the_asynchronous_client(self, address: str, token: str) -> None:
        async def use() -> None:
            async with AsyncOpenAI(
                base_url=f"{address}/v1",
                api_key=token,
                max_retries=0,
                _strict_response_validation=True,
            ) as client:
                assert (await client.webhooks.event_types.list()).data
                made = await client.webhooks.create(
                    name="x", url=URL, event_types=["fine_tuning.job.failed"]
                )
                await client.webhooks.update(made.id, name="y")
                rotated = await client.webhooks.rotate_secret(made.id)
                assert rotated.signing_secret != made.signing_secret
                assert [hook.name async for hook in client.webhooks.list()] == ["y"]
                assert (await client.webhooks.delete(made.id)).deleted

        asyncio.run(use())


class TestSecret:
    def test_is_shown_twice_and_stored_sealed(self, customer: Tenant, place: Place) -> None:
        made = make(customer)
        secret = str(made["signing_secret"])
        address = f"/v1/webhook_endpoints/{made['id']}"
        answers = [
            customer.client.get("/v1/webhook_endpoints"),
            customer.client.get(address),
            customer.client.post(address, json={"name": "other"}),
            customer.client.get(address + "/deliveries"),
        ]
        assert all(answer.status_code == 200 for answer in answers)
        assert not any(secret in answer.text for answer in answers)
        stored = place.session.scalars(select(WebhookEndpoint)).one()
        assert secret not in repr(vars(stored))

    def test_the_old_one_ends_after_24_hours(self, customer: Tenant, place: Place) -> None:
        with receiving() as receiver:
            made = make(customer, url=receiver.url)
            address = f"/v1/webhook_endpoints/{made['id']}"
            body = {"keep_old_secret_active_for_24_hours": True}
            customer.client.post(address + "/rotate_secret", json=body)
            stored = place.session.scalars(select(WebhookEndpoint)).one()
            place.session.refresh(stored)
            assert stored.old_secret_expires_at is not None
            left = stored.old_secret_expires_at - utc_now()
            assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
            stored.old_secret_expires_at = utc_now()
            place.session.commit()
            customer.client.post(address + "/test", json={"event_type": FAILED})
        with pytest.raises(openai.InvalidWebhookSignatureError):
            receiver.received[0].unwrap(str(made["signing_secret"]))

    def test_sealed_under_another_key_it_says_to_rotate(
        self, customer: Tenant, app: FastAPI
    ) -> None:
        made = make(customer)
        app.state.settings = app.state.settings.model_copy(
            update={"webhook_key": SecretStr("j" * 32)}
        )
        address = f"/v1/webhook_endpoints/{made['id']}"
        refused = customer.client.post(address + "/test", json={"event_type": FAILED})
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "webhook_secret_unreadable"
        assert customer.client.post(address + "/rotate_secret").status_code == 200

    def test_without_a_key_the_service_says_so(self, customer: Tenant, app: FastAPI) -> None:
        app.state.settings = app.state.settings.model_copy(update={"webhook_key": SecretStr("")})
        refused = customer.client.post("/v1/webhook_endpoints", json=ASKED)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "webhooks_not_configured"
        assert customer.client.get("/v1/webhook_endpoints").json()["data"] == []


class TestTenants:
    def test_nobody_needs_to_ask_without_a_key(self, anonymous: TestClient) -> None:
        for path in ("webhook_endpoints", "webhook_event_types", "webhook_endpoints/x"):
            assert anonymous.get(f"/v1/{path}").status_code == 401
        assert anonymous.post("/v1/webhook_endpoints", json=ASKED).status_code == 401

    @pytest.mark.parametrize("other", ["stranger", "operator"])
    def test_anothers_endpoint_is_not_there(
        self, customer: Tenant, other: str, request: pytest.FixtureRequest
    ) -> None:
        intruder: Tenant = request.getfixturevalue(other)
        address = f"/v1/webhook_endpoints/{make(customer)['id']}"
        client = intruder.client
        for answer in (
            client.get(address),
            client.post(address, json={"url": "https://evil.example/"}),
            client.delete(address),
            client.post(address + "/rotate_secret"),
            client.post(address + "/test", json={"event_type": FAILED}),
            client.get(address + "/deliveries"),
            client.post(address + "/deliveries/x/redeliver"),
            client.get("/v1/webhook_endpoints", params={"after": address.rpartition("/")[2]}),
        ):
            assert answer.status_code == 404, answer.text
            assert answer.json()["error"]["code"] == "webhook_endpoint_not_found"
        assert client.get("/v1/webhook_endpoints").json()["data"] == []
        assert customer.client.get(address).json()["url"] == URL


class TestBounds:
    @pytest.mark.parametrize(
        ("changed", "param"),
        [
            ({"name": ""}, "name"),
            ({"name": "x" * 101}, "name"),
            ({"url": "ftp://example.com"}, "url"),
            ({"url": "https://example.com/" + "x" * 2_048}, "url"),
            ({"url": "http://169.254.169.254/"}, "url"),
            ({"event_types": []}, "event_types"),
            ({"event_types": ["batch.completed"]}, "event_types[0]"),
            ({"event_types": [FAILED] * 100}, "event_types"),
            ({"signing_secret": "whsec_mine"}, "signing_secret"),
        ],
    )
    def test_a_bad_field_is_named(
        self, customer: Tenant, changed: dict[str, object], param: str
    ) -> None:
        refused = customer.client.post("/v1/webhook_endpoints", json={**ASKED, **changed})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param
        made = make(customer)
        again = customer.client.post(f"/v1/webhook_endpoints/{made['id']}", json=changed)
        assert again.status_code == 400

    @pytest.mark.parametrize("field", ["name", "url", "event_types", "enabled"])
    def test_null_is_no_change(self, customer: Tenant, field: str) -> None:
        made = make(customer)
        refused = customer.client.post(f"/v1/webhook_endpoints/{made['id']}", json={field: None})
        assert refused.json()["error"]["param"] == field

    def test_the_services_own_rules_for_addresses(self, customer: Tenant, app: FastAPI) -> None:
        app.state.settings = app.state.settings.model_copy(update={"webhook_allow_private": False})
        made = make(customer)
        for url in ("http://example.com/", "https://127.0.0.1/", "https://[::1]/"):
            refused = customer.client.post("/v1/webhook_endpoints", json={**ASKED, "url": url})
            assert refused.json()["error"]["code"] == "invalid_webhook_url"
            address = f"/v1/webhook_endpoints/{made['id']}"
            assert customer.client.post(address, json={"url": url}).status_code == 400

    def test_a_project_has_so_many_and_no_more(self, customer: Tenant, stranger: Tenant) -> None:
        ids = [make(customer)["id"] for _ in range(MAX_ENDPOINTS)]
        refused = customer.client.post("/v1/webhook_endpoints", json=ASKED)
        assert refused.status_code == 409
        assert refused.headers["x-should-retry"] == "false"
        assert refused.json()["error"]["code"] == "too_many_webhook_endpoints"
        make(stranger)
        customer.client.delete(f"/v1/webhook_endpoints/{ids[0]}")
        make(customer)

    def test_a_type_named_twice_is_kept_once(self, customer: Tenant) -> None:
        assert make(customer, event_types=[FAILED, FAILED])["event_types"] == [FAILED]


class TestUpdate:
    def test_what_changes_nothing_leaves_the_time_alone(
        self, customer: Tenant, place: Place
    ) -> None:
        made = make(customer)
        stored = place.session.scalars(select(WebhookEndpoint)).one()
        stored.updated_at -= timedelta(hours=1)
        place.session.commit()
        address = f"/v1/webhook_endpoints/{made['id']}"
        same = customer.client.post(address, json={**ASKED, "enabled": True}).json()
        assert same["updated_at"] == int(made["created_at"]) - 3600  # type: ignore[call-overload]
        changed = customer.client.post(address, json={"name": "new"}).json()
        assert changed["updated_at"] > same["updated_at"]

    def test_switching_off_and_on(self, customer: Tenant) -> None:
        made = make(customer)
        assert made["enabled"] is True
        address = f"/v1/webhook_endpoints/{made['id']}"
        off = customer.client.post(address, json={"enabled": False}).json()
        assert (off["enabled"], off["disabled_reason"]) == (
            False,
            "It was switched off by its owner.",
        )
        on = customer.client.post(address, json={"enabled": True}).json()
        assert (on["enabled"], on["disabled_reason"]) == (True, None)


class TestSample:
    def test_a_receiver_that_refuses_is_an_answer(self, customer: Tenant) -> None:
        with receiving(500) as receiver:
            made = make(customer, url=receiver.url)
            address = f"/v1/webhook_endpoints/{made['id']}/test"
            answer = customer.client.post(address, json={"event_type": FAILED})
        assert answer.json()["status_code"] == 500

    def test_none_that_answers_is_an_error(self, customer: Tenant) -> None:
        made = make(customer, url="http://127.0.0.1:1/")
        address = f"/v1/webhook_endpoints/{made['id']}/test"
        refused = customer.client.post(address, json={"event_type": FAILED})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "webhook_endpoint_unreachable"
        assert error["message"] == "Nothing accepted the connection."

    def test_one_at_a_time_for_a_project(
        self, customer: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from api.webhooks import service

        made = make(customer)
        monkeypatch.setattr(service, "_testing", {customer.project.id})
        address = f"/v1/webhook_endpoints/{made['id']}/test"
        refused = customer.client.post(address, json={"event_type": FAILED})
        assert refused.status_code == 429

    def test_unknown_types_are_refused(self, customer: Tenant) -> None:
        made = make(customer)
        address = f"/v1/webhook_endpoints/{made['id']}/test"
        refused = customer.client.post(address, json={"event_type": "video.completed"})
        assert refused.json()["error"]["param"] == "event_type"


class TestWhatIsTold:
    """Through the routes that decide, to the outbox."""

    @staticmethod
    def told(place: Place, tenant: Tenant) -> list[str]:
        query = select(WebhookEvent.type).where(WebhookEvent.project_id == tenant.project.id)
        return sorted(place.session.scalars(query))

    @pytest.mark.parametrize(
        ("decision", "types"),
        [
            ("release", ["fine_tuning.job.succeeded", "titer.model.released"]),
            ("reject", ["fine_tuning.job.failed", "titer.model.blocked"]),
        ],
    )
    def test_a_persons_decision(
        self,
        customer: Tenant,
        operator: Tenant,
        place: Place,
        aligned: ModelVersion,
        decision: str,
        types: list[str],
    ) -> None:
        make(customer, event_types=list(WebhookEventType))
        make(operator, event_types=list(WebhookEventType))
        version, _ = place.held(customer.project, aligned)
        place.session.commit()
        place.session.execute(delete(WebhookDelivery))
        place.session.execute(delete(WebhookEvent))
        place.session.commit()
        address = f"/v1/models/{version.id}/review"
        body = {"decision": decision, "reason": "Looked at."}
        assert operator.client.post(address, json=body).status_code == 200
        assert self.told(place, customer) == types
        assert self.told(place, operator) == [], "another project's model"

    def test_a_cancel(self, customer: Tenant, place: Place, aligned: ModelVersion) -> None:
        make(customer, event_types=list(WebhookEventType))
        job = place.job(customer.project, aligned)
        place.session.commit()
        address = f"/v1/fine_tuning/jobs/{job.id}/cancel"
        assert customer.client.post(address).status_code == 200
        assert customer.client.post(address).status_code == 409
        assert self.told(place, customer) == ["fine_tuning.job.cancelled"]


class TestDeliveries:
    def test_are_listed_newest_first_page_by_page(self, customer: Tenant, place: Place) -> None:
        made = make(customer)
        for number in range(3):
            publish(place.session, customer.project.id, FAILED, {"id": f"ftjob-{number}"})
            place.session.commit()
        address = f"/v1/webhook_endpoints/{made['id']}/deliveries"
        page = customer.client.get(address, params={"limit": 2}).json()
        assert page["has_more"] is True
        rest = customer.client.get(address, params={"after": page["data"][-1]["id"]}).json()
        assert rest["has_more"] is False
        found = [*page["data"], *rest["data"]]
        assert len({delivery["event_id"] for delivery in found}) == 3
        first = found[0]
        assert first["object"] == "webhook_endpoint.delivery"
        assert (first["status"], first["attempts"], first["event_type"]) == ("pending", 0, FAILED)
        assert first["next_attempt_at"] is not None
        unknown = customer.client.get(address, params={"after": "whd-x"})
        assert unknown.status_code == 404

    def test_redelivery_begins_a_fresh_round(self, customer: Tenant, place: Place) -> None:
        made = make(customer)
        publish(place.session, customer.project.id, FAILED, {"id": "ftjob-1"})
        place.session.flush()
        delivery = place.session.scalars(select(WebhookDelivery)).one()
        delivery.status, delivery.attempts, delivery.attempts_left = DeliveryStatus.FAILED, 10, 0
        delivery.next_attempt_at = None
        place.session.commit()
        address = f"/v1/webhook_endpoints/{made['id']}"
        again = customer.client.post(f"{address}/deliveries/{delivery.id}/redeliver").json()
        assert (again["status"], again["attempts"]) == ("pending", 10)
        assert again["next_attempt_at"] is not None
        place.session.refresh(delivery)
        assert delivery.attempts_left == MAX_ATTEMPTS
        customer.client.post(address, json={"enabled": False})
        refused = customer.client.post(f"{address}/deliveries/{delivery.id}/redeliver")
        assert refused.json()["error"]["code"] == "webhook_endpoint_disabled"

    def test_one_that_is_just_being_sent_is_left_alone(
        self, customer: Tenant, place: Place
    ) -> None:
        made = make(customer)
        publish(place.session, customer.project.id, FAILED, {"id": "ftjob-1"})
        place.session.flush()
        delivery = place.session.scalars(select(WebhookDelivery)).one()
        delivery.leased_until = utc_now() + timedelta(seconds=30)
        delivery.attempts_left = 3
        place.session.commit()
        address = f"/v1/webhook_endpoints/{made['id']}/deliveries/{delivery.id}/redeliver"
        assert customer.client.post(address).status_code == 200
        place.session.refresh(delivery)
        assert delivery.attempts_left == 3

    def test_go_with_their_endpoint(self, customer: Tenant, place: Place) -> None:
        made = make(customer)
        publish(place.session, customer.project.id, FAILED, {"id": "ftjob-1"})
        place.session.commit()
        assert customer.client.delete(f"/v1/webhook_endpoints/{made['id']}").status_code == 200
        assert place.session.scalars(select(WebhookDelivery)).all() == []


class TestAllProjects:
    def test_are_for_staff(self, customer: Tenant, reviewer: Tenant) -> None:
        body = {**ASKED, "all_projects": True}
        refused = customer.client.post("/v1/webhook_endpoints", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
        assert make(reviewer, all_projects=True)["all_projects"] is True
        assert make(reviewer)["all_projects"] is False

    def test_a_customers_key_in_the_same_project_neither_sees_nor_changes_them(
        self, reviewer: Tenant, place: Place
    ) -> None:
        made = make(reviewer, all_projects=True)
        token = place.key(reviewer.project, Scope.CUSTOMER)
        place.session.commit()
        client = TestClient(reviewer.client.app, headers={"authorization": f"Bearer {token}"})
        address = f"/v1/webhook_endpoints/{made['id']}"
        assert client.get("/v1/webhook_endpoints").json()["data"] == []
        asked = [
            client.get(address),
            client.post(address, json={"url": "https://elsewhere.example.com/"}),
            client.post(f"{address}/rotate_secret"),
            client.post(f"{address}/test", json={"event_type": FAILED.value}),
            client.get(f"{address}/deliveries"),
            client.delete(address),
        ]
        assert [response.status_code for response in asked] == [404] * 6
        assert reviewer.client.get(address).json()["url"] == URL

    def test_they_hear_of_held_data_and_models_of_other_projects(
        self, customer: Tenant, reviewer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        types = ["titer.data.held", "titer.model.held"]
        made = make(reviewer, all_projects=True, event_types=types)
        place.held_data(customer.project, aligned)
        place.held(customer.project, aligned)
        place.session.commit()
        address = f"/v1/webhook_endpoints/{made['id']}/deliveries"
        found = reviewer.client.get(address).json()["data"]
        assert sorted(delivery["event_type"] for delivery in found) == types
        events = place.session.scalars(select(WebhookEvent)).all()
        assert {event.data["project"] for event in events} == {customer.project.id}


def test_a_project_with_webhooks_can_be_archived(
    customer: Tenant, operator: Tenant, aligned: ModelVersion, place: Place
) -> None:
    make(customer, event_types=["fine_tuning.job.cancelled"])
    make(operator, all_projects=True, event_types=["fine_tuning.job.cancelled"])
    place.job(customer.project, aligned)
    place.session.commit()
    path = f"/v1/organization/projects/{customer.project.id}/archive"
    assert operator.client.post(path).json()["status"] == "archived"
    # Its last events are told, to its own endpoint as well.
    assert len(place.session.scalars(select(WebhookDelivery)).all()) == 2
