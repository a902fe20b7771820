"""`titer webhooks` against a running app and a real receiver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from models.api_key import Project
from models.scope import Scope
from models.settings import Settings
from models.webhook import WebhookEventType, publish
from tests.api.conftest import Place
from tests.api.server import serve
from tests.api.test_cli import Cli
from tests.api.webhooks.receiver import receiving

# Each test starts a server.
pytestmark = pytest.mark.long


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"webhook_key": SecretStr("k" * 32), "webhook_allow_private": True}
    )


@pytest.fixture
def project(place: Place) -> Project:
    return place.project()


@pytest.fixture
def cli(app: FastAPI, place: Place, project: Project) -> Iterator[Cli]:
    token = place.key(project, Scope.CUSTOMER)
    place.session.commit()
    with serve(app) as address:
        yield Cli(address, token)


def test_from_the_first_endpoint_to_the_last(cli: Cli, place: Place, project: Project) -> None:
    with receiving() as receiver:
        made = cli.json("webhooks", "create", receiver.url, "--name", "ours")
        assert made["event_types"] == sorted(WebhookEventType)
        endpoint = str(made["id"])
        assert "answered 200" in cli("webhooks", "test", endpoint)
        receiver.received[0].unwrap(str(made["signing_secret"]))
        receiver.answer = 500
        assert "answered 500" in cli.failing("webhooks", "test", endpoint)
    rotated = cli("webhooks", "rotate", endpoint, "--keep-old")
    assert "whsec_" in rotated
    assert str(made["signing_secret"]) not in rotated
    listed = cli("webhooks", "list")
    assert "ours" in listed
    assert "whsec_" not in listed
    publish(place.session, project.id, WebhookEventType.MODEL_HELD, {"id": "m"})
    place.session.commit()
    shown = cli("webhooks", "deliveries", endpoint)
    assert "titer.model.held" in shown
    assert "pending" in shown
    listed_json = cli.json("webhooks", "deliveries", endpoint)
    delivery = listed_json["data"][0]["id"]  # type: ignore[index]
    assert "pending" in cli("webhooks", "redeliver", endpoint, delivery)
    assert "enabled" in cli("webhooks", "enable", endpoint)
    assert "deleted" in cli("webhooks", "delete", endpoint)
    assert "No such webhook endpoint" in cli.failing("webhooks", "deliveries", endpoint)


def test_only_the_events_that_were_named(cli: Cli) -> None:
    made = cli.json(
        "webhooks", "create", "https://example.com", "--event", "titer.model.held", "--event",
        "titer.canary.alarm",
    )  # fmt: skip
    assert made["event_types"] == ["titer.canary.alarm", "titer.model.held"]
    refused = cli.failing("webhooks", "create", "https://example.com", "--event", "nonsense")
    assert "event_types" in refused
