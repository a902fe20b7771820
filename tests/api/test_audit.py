"""The audit log over HTTP: who may read it, filters, pages, export, and what is written into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import OpenAI
from sqlalchemy import select, text

from models.api_key import ApiKey
from models.audit import SERVICE, record
from models.audit_chain import check_chain
from models.model_version import ModelVersion
from tests.api.conftest import Place, Tenant
from tests.api.server import serve

AUDIT = "/v1/audit"


def fill(place: Place, count: int, action: str = "thing.done") -> None:
    for number in range(count):
        record(
            place.session,
            actor=SERVICE,
            action=action,
            subject=("thing", f"thing-{number}"),
            details={"number": number},
        )
    place.session.commit()


def operator_key(place: Place, operator: Tenant) -> ApiKey:
    return place.session.scalars(
        select(ApiKey).where(ApiKey.project_id == operator.project.id)
    ).one()


def actions(tenant: Tenant, **params: object) -> list[str]:
    data = tenant.client.get(AUDIT, params={"limit": 1000, **params}).json()["data"]  # type: ignore[dict-item]
    return [entry["action"] for entry in data]


class TestWhoMayRead:
    @pytest.mark.parametrize(
        "address", [AUDIT, f"{AUDIT}/export", f"{AUDIT}/verify", "/v1/organization/audit_logs"]
    )
    def test_only_staff(
        self, anonymous: TestClient, customer: Tenant, operator: Tenant, address: str
    ) -> None:
        assert anonymous.get(address).status_code == 401
        refused = customer.client.get(address)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
        assert operator.client.get(address).status_code == 200


class TestList:
    def test_pages_newest_first(self, operator: Tenant, place: Place) -> None:
        fill(place, 5)
        first = operator.client.get(AUDIT, params={"limit": 2}).json()
        assert [e["subject"]["id"] for e in first["data"]] == ["thing-4", "thing-3"]
        assert first["has_more"] is True
        rest = operator.client.get(
            AUDIT, params={"limit": 3, "after": first["data"][-1]["id"]}
        ).json()
        assert [e["subject"]["id"] for e in rest["data"]] == ["thing-2", "thing-1", "thing-0"]
        assert rest["has_more"] is False

    def test_filters(self, operator: Tenant, place: Place) -> None:
        fill(place, 2)
        fill(place, 1, "thing.undone")
        assert actions(operator, action="thing.undone") == ["thing.undone"]
        assert len(actions(operator, action=["thing.done", "thing.undone"])) == 3
        assert len(actions(operator, subject="thing-0")) == 2
        assert actions(operator, subject_kind="other") == []
        assert actions(operator, actor="key-none") == []
        assert actions(operator, until=1) == []
        assert len(actions(operator, since=1)) == 3

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("policy-7", 1),
            ("POLICY cre", 1),
            ("Grüße from", 1),
            ("ftjob-9e12", 1),
            ("stat", 1),
            ("tatute", 0),
            ("statute zebra", 0),
            ("thing", 2),
            ("12 'or' !&|():*", 0),
            ("?!", 0),
        ],
    )
    def test_finds_words_and_their_beginnings(
        self,
        operator: Tenant,
        place: Place,
        monkeypatch: pytest.MonkeyPatch,
        text: str,
        found: int,
    ) -> None:
        fill(place, 2)
        record(
            place.session,
            actor=operator_key(place, operator),
            action="policy.created",
            subject=("policy", "policy-7"),
            project_id=operator.project.id,
            reason="Grüße from the statute.",
            details={"job": "ftjob-9e12abcD"},
        )
        place.session.commit()
        assert len(actions(operator, text=text)) == found
        # Where there is much of it, it is looked for from the newest on.
        monkeypatch.setattr("api.audit.service.RARE", 0)
        assert len(actions(operator, text=text)) == found

    def test_a_range_of_times_is_found_however_much_came_since(
        self, operator: Tenant, place: Place
    ) -> None:
        fill(place, 6)
        # Days 1 to 6, but one machine's clock went half a day before the others'.
        place.session.execute(text("alter table audit_entries disable trigger all"))
        place.session.execute(
            text(
                "update audit_entries set created_at = timestamptz '2026-01-01 12:00Z' "
                "+ position * interval '1 day' - case when position = 4 then interval '18 hours' else '0' end"
            )
        )
        place.session.commit()

        def found(**params: str) -> list[int]:
            times = {k: int(datetime.fromisoformat(v).timestamp()) for k, v in params.items()}
            data = operator.client.get(AUDIT, params=times).json()["data"]
            return [entry["position"] for entry in data]

        assert found(since="2026-01-04T00:00Z") == [6, 5, 4, 3]
        assert found(since="2026-01-04T18:00Z") == [6, 5, 4]
        assert found(until="2026-01-04T12:00Z") == [3, 2, 1]
        assert found(since="2026-01-03T00:00Z", until="2026-01-04T19:00Z") == [4, 3, 2]
        assert found(since="2026-02-01T00:00Z") == []
        assert found(until="2025-01-01T00:00Z") == []

    @pytest.mark.parametrize(
        ("params", "status"),
        [
            ({"after": "audit-none"}, 404),
            ({"text": ""}, 400),
            ({"text": "x" * 257}, 400),
            ({"limit": 0}, 400),
            ({"since": -1}, 400),
            ({"until": 10**15}, 400),
            ({"action": ["a"] * 101}, 400),
            ({"action": "\x00"}, 400),
        ],
    )
    def test_bad_questions(self, operator: Tenant, params: dict[str, object], status: int) -> None:
        response = operator.client.get(AUDIT, params=params)  # type: ignore[arg-type]
        assert response.status_code == status
        assert set(response.json()["error"]) >= {"message", "type", "param", "code"}


class TestExportAndVerify:
    def test_the_export_is_a_chain_by_itself(
        self, operator: Tenant, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.audit.service.EXPORT_PART", 2)
        fill(place, 5)
        response = operator.client.get(f"{AUDIT}/export")
        assert response.headers["content-type"] == "application/jsonl"
        entries = [json.loads(line) for line in response.text.splitlines()]
        assert [entry["position"] for entry in entries] == [1, 2, 3, 4, 5]
        pairs = [
            ({k: v for k, v in e.items() if k not in ("sha256", "object")}, e["sha256"])
            for e in entries
        ]
        assert check_chain(pairs).is_whole

    def test_a_faulty_question_is_answered_before_anything_is_sent(self, operator: Tenant) -> None:
        response = operator.client.get(f"{AUDIT}/export", params={"action": "\x00"})
        assert response.status_code == 400
        assert operator.client.get(f"{AUDIT}/export").content == b""

    def test_verify_tells_the_head_and_finds_a_break(self, operator: Tenant, place: Place) -> None:
        fill(place, 3)
        found = operator.client.get(f"{AUDIT}/verify").json()
        assert (found["whole"], found["entries"], found["fault"]) == (True, 3, None)
        noted = found["head"]
        assert operator.client.get(f"{AUDIT}/verify", params=noted).json()["whole"] is True
        assert (
            operator.client.get(f"{AUDIT}/verify", params={"position": 3}).json()["error"]["code"]
            == "half_a_head"
        )
        place.session.execute(text("alter table audit_entries disable trigger all"))
        place.session.execute(text("update audit_entries set reason = 'x' where position = 2"))
        place.session.commit()
        place.session.expire_all()
        broken = operator.client.get(f"{AUDIT}/verify").json()
        assert (broken["whole"], broken["head"]["position"]) == (False, 1)
        assert "Entry 2 was changed" in broken["fault"]


class TestStockClient:
    @pytest.fixture
    def client(self, app: FastAPI, operator: Tenant) -> Iterator[OpenAI]:
        with serve(app) as url:
            yield OpenAI(
                base_url=f"{url}/v1",
                api_key=operator.token,
                admin_api_key=operator.token,
                _strict_response_validation=True,
                max_retries=0,
            )

    def test_pages_and_filters_by_openais_words(
        self, client: OpenAI, operator: Tenant, place: Place
    ) -> None:
        made = [
            operator.client.post("/v1/keys", json={"name": f"k{n}"}).json()["id"] for n in range(3)
        ]
        operator.client.delete(f"/v1/keys/{made[0]}")
        logs = client.admin.organization.audit_logs
        found = list(logs.list(limit=1))
        assert [log.type for log in found] == ["api_key.deleted", *["api_key.created"] * 3]
        assert found[0].actor is not None
        assert found[0].actor.api_key is not None
        assert (found[0].actor.api_key.id or "").startswith("key-")
        assert found[0].project is not None
        assert found[0].project.name == "provider"
        deleted = logs.list(event_types=["api_key.deleted"]).data
        assert [log.id for log in deleted] == [found[0].id]
        assert [log.id for log in logs.list(resource_ids=[made[2]]).data] == [found[1].id]
        assert logs.list(effective_at={"gt": found[0].effective_at + 5}).data == []


class TestWhatIsWritten:
    def test_keys_made_and_revoked(self, operator: Tenant, place: Place) -> None:
        made = operator.client.post("/v1/keys", json={"name": "k", "project": "new one"}).json()
        operator.client.delete(f"/v1/keys/{made['id']}")
        operator.client.delete(f"/v1/keys/{made['id']}")
        data = operator.client.get(AUDIT).json()["data"]
        assert [entry["action"] for entry in data] == ["key.revoked", "key.created"]
        assert data[0]["subject"] == {"kind": "key", "id": made["id"]}
        assert data[0]["project_id"] == made["project"]["id"]
        assert data[0]["actor"]["project_id"] == operator.project.id
        assert made["key"] not in json.dumps(data)

    def test_models_deleted_and_jobs_cancelled(
        self, customer: Tenant, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        job = place.job(customer.project, aligned)
        place.session.commit()
        operator.client.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")
        operator.client.delete(f"/v1/models/{aligned.id}")
        assert actions(operator) == ["model.deleted", "job.cancelled"]

    def test_a_refused_action_leaves_nothing(self, operator: Tenant) -> None:
        assert operator.client.delete("/v1/keys/key-none").status_code == 404
        assert actions(operator) == []

    def test_alignment_started_once_however_often_it_is_sent(
        self, operator: Tenant, base: ModelVersion, place: Place
    ) -> None:
        place.session.commit()
        for _ in range(2):
            response = operator.client.post(
                "/v1/alignment/jobs",
                json={"model": base.id, "method": {"name": "sft"}},
                headers={"idempotency-key": "one"},
            )
            assert response.status_code == 200, response.text
        assert actions(operator) == ["alignment.started"]
