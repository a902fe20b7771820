"""/v1/system: every part is asked, none keeps the others waiting, and no secret is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.orm import Session

from api.organization.use import SWEEPER_GONE_AFTER, count_use
from api.seed.fleet import seed_workers
from api.system import parts
from api.system.shown_settings import (
    GROUPS,
    MASK,
    OTHERS,
    group_of,
    show_settings,
    without_credentials,
)
from models.base import utc_now
from models.project_use import ProjectUse
from models.settings import Settings, environment_names
from models.storage import Storage
from models.webhook import DeliveryStatus, WebhookEventType, publish
from models.worker import Worker, speak
from tests.api.conftest import NOWHERE, Place, SilentDoorbell, Tenant
from tests.api.server import serve
from tests.models.test_webhook import make_endpoint


def system_of(tenant: Tenant) -> dict[str, object]:
    answer = tenant.client.get("/v1/system")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def part_of(tenant: Tenant, name: str) -> dict[str, object]:
    found = system_of(tenant)["parts"]
    assert isinstance(found, list)
    return next(part for part in found if part["name"] == name)


class TestParts:
    def test_those_that_are_here_are_well_and_those_that_are_not_are_down(
        self, operator: Tenant
    ) -> None:
        states = {
            str(name): part_of(operator, name)["state"]
            for name in ("database", "redis", "queue", "storage", "serving", "workers")
        }
        assert states == {
            "database": "ok",
            "redis": "down",
            "queue": "ok",
            "storage": "ok",
            "serving": "down",
            "workers": "down",
        }
        assert system_of(operator)["is_well"] is False

    def test_redis_and_its_version(
        self, app: FastAPI, operator: Tenant, settings: Settings, redis_url: str
    ) -> None:
        app.state.settings = settings.model_copy(update={"redis_url": redis_url})
        found = part_of(operator, "redis")
        assert found["state"] == "ok"
        versions = system_of(operator)["versions"]
        assert isinstance(versions, dict)
        assert versions["Redis"] == found["version"]

    def test_a_broker_that_is_down(self, operator: Tenant, doorbell: SilentDoorbell) -> None:
        doorbell.is_up = False
        assert "no worker hears of new jobs" in str(part_of(operator, "queue")["detail"])

    def test_serving_that_answers(
        self, app: FastAPI, operator: Tenant, settings: Settings, built_app: FastAPI
    ) -> None:
        # Any server with a /healthz will do, such as this one.
        with serve(app) as url:
            app.state.settings = settings.model_copy(update={"serving_url": url})
            assert part_of(operator, "serving")["state"] == "ok"

    def test_a_sweeper_that_never_ran_that_runs_and_that_is_gone(
        self, operator: Tenant, session: Session
    ) -> None:
        assert part_of(operator, "sweeper")["state"] == "warn"
        count_use(session)
        session.commit()
        assert part_of(operator, "sweeper")["state"] == "ok"
        for use in session.query(ProjectUse):
            use.counted_at = utc_now() - SWEEPER_GONE_AFTER - timedelta(minutes=2)
        session.commit()
        found = part_of(operator, "sweeper")
        assert found["state"] == "down"
        assert "5 minutes ago" in str(found["detail"])

    def test_workers_alive_and_silent(self, operator: Tenant, session: Session) -> None:
        seed_workers(session)
        session.commit()
        found = part_of(operator, "workers")
        assert (found["state"], found["detail"]) == ("warn", "1 alive, 1 fell silent.")
        workers = system_of(operator)["workers"]
        assert isinstance(workers, list)
        assert {worker["id"]: worker["state"] for worker in workers} == {
            "gpu-8:3999": "stopped",
            "gpu-9:4188": "silent",
            "spare:977": "alive",
        }

    def test_a_folder_that_is_gone(self, operator: Tenant, storage: Storage) -> None:
        assert storage.root is not None
        storage.root.rename(storage.root.with_name("elsewhere"))
        assert part_of(operator, "storage")["state"] == "down"

    @pytest.fixture
    def silent_address(self) -> Iterator[str]:
        """A server that takes connections and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"

    def test_one_that_does_not_answer_costs_a_moment_and_not_more(
        self,
        operator: Tenant,
        app: FastAPI,
        settings: Settings,
        silent_address: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(parts, "ANSWER_SECONDS", 0.3)
        stuck = threading.Event()
        monkeypatch.setattr(parts, "_ask_storage", lambda _storage: stuck.wait(20))
        app.state.settings = settings.model_copy(update={"serving_url": silent_address})
        begun = time.monotonic()
        found = system_of(operator)["parts"]
        took = time.monotonic() - begun
        stuck.set()
        assert isinstance(found, list)
        states = {part["name"]: part["state"] for part in found}
        assert states["storage"] == states["serving"] == "down"
        assert states["database"] == "ok"
        assert took < 10


class TestMigrations:
    def test_are_current(self, operator: Tenant) -> None:
        found = system_of(operator)["migrations"]
        assert isinstance(found, dict)
        assert found["is_current"] is True
        assert found["current"] == found["head"]

    def test_of_another_release_are_not(self, operator: Tenant, session: Session) -> None:
        session.execute(text("update alembic_version set version_num = '000000000000'"))
        session.commit()
        found = system_of(operator)
        assert isinstance(found["migrations"], dict)
        assert found["migrations"]["is_current"] is False
        assert found["is_well"] is False


class TestWebhooks:
    def test_backlog(self, operator: Tenant, place: Place) -> None:
        make_endpoint(place.session, operator.project)
        make_endpoint(place.session, operator.project, given_up_in_a_row=2)
        make_endpoint(place.session, operator.project, disabled_at=utc_now())
        for _ in range(2):
            publish(place.session, operator.project.id, WebhookEventType.MODEL_HELD, {"id": "m"})
        place.session.flush()
        place.session.execute(
            text(
                "update webhook_deliveries set status = :done where id in "
                "(select id from webhook_deliveries limit 1)"
            ),
            {"done": DeliveryStatus.DELIVERED},
        )
        place.session.commit()
        found = system_of(operator)["webhooks"]
        assert isinstance(found, dict)
        # Two events for the two endpoints that are sent to, and one of them has arrived.
        assert found.pop("oldest_due_at") is not None
        assert found == {"is_on": False, "pending": 3, "endpoints": 3, "failing": 1, "disabled": 1}


class TestSettings:
    SECRET = "c0ffee" * 10 + "beef"

    def test_are_for_operators_alone(
        self, operator: Tenant, reviewer: Tenant, provider: Tenant
    ) -> None:
        assert system_of(operator)["settings"]
        assert system_of(reviewer)["settings"] is None
        assert system_of(provider)["settings"] is None

    def test_tell_no_secret(self, operator: Tenant, app: FastAPI, settings: Settings) -> None:
        app.state.settings = settings.model_copy(
            update={
                **{
                    name: SecretStr(self.SECRET)
                    for name, field in Settings.model_fields.items()
                    if field.annotation is SecretStr
                },
                "mlflow_tracking_uri": f"https://me:{self.SECRET}@mlflow.example.com/?token={self.SECRET}",
                "storage_url": f"{settings.storage_url}?secret={self.SECRET}",
            }
        )
        answer = operator.client.get("/v1/system")
        assert self.SECRET not in answer.text
        found = {setting["variable"]: setting for setting in answer.json()["settings"]}
        assert found["TITER_SIGNING_KEY"]["value"] == "set"
        assert (
            found["TITER_MLFLOW_TRACKING_URI"]["value"]
            == f"https://{MASK}@mlflow.example.com/?{MASK}"
        )

    def test_are_all_there_with_whether_they_were_changed(self) -> None:
        shown = show_settings(NOWHERE.model_copy(update={"lease_seconds": 90}))
        assert {setting.variable for setting in shown} == set(environment_names())
        changed = {setting.variable: setting.is_default for setting in shown}
        assert changed["TITER_LEASE_SECONDS"] is False
        assert changed["TITER_MAX_ATTEMPTS"] is True
        groups = [setting.group for setting in shown]
        assert [g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g] == list(
            dict.fromkeys(groups)
        )

    def test_one_without_a_group_is_among_the_others(self) -> None:
        assert group_of("quota_jobs_running") in GROUPS
        assert group_of("something_new") == OTHERS

    @pytest.mark.parametrize(
        ("address", "shown"),
        [
            ("redis://:pw@127.0.0.1:6379/0", f"redis://{MASK}@127.0.0.1:6379/0"),
            (
                "postgresql+psycopg://u:p%40@h/db?password=p",
                f"postgresql+psycopg://{MASK}@h/db?{MASK}",
            ),
            ("https://api.wandb.ai", "https://api.wandb.ai"),
            ("file:///srv/a%20folder", "file:///srv/a%20folder"),
            ("", ""),
        ],
    )
    def test_addresses_lose_what_may_be_secret(self, address: str, shown: str) -> None:
        assert without_credentials(address) == shown


class TestSigningKey:
    def test_is_named_by_its_id(self, operator: Tenant, app: FastAPI, settings: Settings) -> None:
        assert system_of(operator)["signing_key"] is None
        app.state.settings = settings.model_copy(update={"signing_key": SecretStr("0c" * 32)})
        named = operator.client.get("/v1/safety/keys").json()["data"][0]
        assert system_of(operator)["signing_key"] == named["id"]


def test_a_worker_that_spoke_is_there(operator: Tenant, session: Session) -> None:
    facts = {
        "host": "h",
        "started_at": utc_now(),
        "device": "cpu",
        "memory_bytes": 8,
        "memory_used_bytes": 3,
        "version": "9.9",
    }
    speak(session, "h:1", facts)
    session.commit()
    workers = system_of(operator)["workers"]
    assert isinstance(workers, list)
    assert workers[0]["version"] == "9.9"
    assert workers[0]["job"] is None
    assert session.get_one(Worker, "h:1").is_alive
