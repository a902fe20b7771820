"""API keys over HTTP: shown once, for operators, and never all gone."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from models.api_key import ApiKey, Project
from models.base import utc_now
from models.scope import Scope
from tests.api.conftest import Place, Tenant

KEYS = "/v1/keys"


def create(operator: Tenant, **facts: object) -> dict[str, object]:
    response = operator.client.post(KEYS, json={"name": "n", **facts})
    assert response.status_code == 200, response.text
    return dict(response.json())


def call(client: TestClient, token: object) -> int:
    return client.get("/v1/files", headers={"authorization": f"Bearer {token}"}).status_code


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("GET", ""), ("DELETE", "/key-x")])
def test_only_operators(anonymous: TestClient, customer: Tenant, method: str, path: str) -> None:
    content = {"json": {"name": "n"}} if method == "POST" else {}
    assert anonymous.request(method, KEYS + path, **content).status_code == 401
    assert customer.client.request(method, KEYS + path, **content).status_code == 403


class TestCreate:
    def test_the_secret_is_shown_once_and_works(
        self, operator: Tenant, anonymous: TestClient, place: Place
    ) -> None:
        made = create(operator, project="new tenant")
        assert call(anonymous, made["key"]) == 200
        assert made["scopes"] == ["customer"]
        listed = operator.client.get(KEYS)
        assert str(made["key"]) not in listed.text
        assert made["id"] in [key["id"] for key in listed.json()["data"]]
        tokens = place.session.scalars(select(ApiKey.token_sha256)).all()
        assert made["key"] not in tokens

    def test_a_project_is_made_once_and_found_by_name_and_id(
        self, operator: Tenant, place: Place
    ) -> None:
        one, two = (create(operator, project="globex")["project"] for _ in range(2))
        assert one == two
        assert isinstance(one, dict)
        assert create(operator, project=one["id"])["project"] == one
        count = select(func.count()).select_from(Project).where(Project.name == "globex")
        assert place.session.scalar(count) == 1

    def test_without_a_project_it_is_ones_own(self, operator: Tenant) -> None:
        project = create(operator)["project"]
        assert isinstance(project, dict)
        assert project["id"] == operator.project.id

    def test_an_unknown_id_is_not_found(self, operator: Tenant) -> None:
        response = operator.client.post(KEYS, json={"name": "n", "project": "proj-x"})
        assert response.status_code == 404

    @pytest.mark.parametrize(
        "facts", [{"scopes": []}, {"scopes": ["root"]}, {"name": " "}, {"name": "x" * 101}]
    )
    def test_odd_requests_are_refused(self, operator: Tenant, facts: dict[str, object]) -> None:
        assert operator.client.post(KEYS, json={"name": "n", **facts}).status_code == 400


class TestRevoke:
    def test_the_key_stops_at_once(self, operator: Tenant, anonymous: TestClient) -> None:
        made = create(operator)
        revoked = operator.client.delete(f"{KEYS}/{made['id']}").json()
        assert revoked["revoked_at"] is not None
        assert call(anonymous, made["key"]) == 401
        again = operator.client.delete(f"{KEYS}/{made['id']}").json()
        assert again["revoked_at"] == revoked["revoked_at"]

    def test_the_last_operator_key_stays(self, operator: Tenant, place: Place) -> None:
        own = place.session.scalars(
            select(ApiKey).where(ApiKey.scopes.contains([Scope.OPERATOR.value]))
        ).one()
        response = operator.client.delete(f"{KEYS}/{own.id}")
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "last_operator_key"
        create(operator, scopes=["operator"])
        assert operator.client.delete(f"{KEYS}/{own.id}").status_code == 200

    def test_an_unknown_key_is_not_found(self, operator: Tenant) -> None:
        assert operator.client.delete(f"{KEYS}/key-x").status_code == 404


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic eDp5", "Bearer " + "x" * 600, "bearer wrong"]
)
def test_what_is_no_key_is_refused(anonymous: TestClient, header: str) -> None:
    response = anonymous.get("/v1/files", headers={"authorization": header})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


class TestFacts:
    def test_a_key_knows_its_user_its_end_and_its_last_use(
        self, operator: Tenant, anonymous: TestClient, place: Place
    ) -> None:
        made = create(operator, user="ada@acme.example", expires_in_seconds=3600)
        assert (made["user"], made["last_used_at"]) == ("ada@acme.example", None)
        assert int(str(made["expires_at"])) - int(str(made["created_at"])) == pytest.approx(
            3600, abs=2
        )
        assert call(anonymous, made["key"]) == 200
        shown = operator.client.get(f"{KEYS}/{made['id']}").json()
        assert shown["last_used_at"] == pytest.approx(time.time(), abs=5)
        assert "key" not in shown

    def test_use_is_noted_once_a_minute(
        self, operator: Tenant, anonymous: TestClient, place: Place
    ) -> None:
        made = create(operator)
        key = place.session.get_one(ApiKey, made["id"])
        for age, moves in ((timedelta(seconds=50), False), (timedelta(seconds=70), True)):
            before = key.last_used_at = utc_now() - age
            place.session.commit()
            assert call(anonymous, made["key"]) == 200
            place.session.refresh(key)
            assert (key.last_used_at != before) == moves

    def test_an_expired_key_is_refused_and_says_so(
        self, operator: Tenant, anonymous: TestClient, place: Place
    ) -> None:
        made = create(operator, expires_in_seconds=60)
        place.session.get_one(ApiKey, made["id"]).expires_at = utc_now()
        place.session.commit()
        response = anonymous.get("/v1/files", headers={"authorization": f"Bearer {made['key']}"})
        assert response.status_code == 401
        assert response.json()["error"]["message"] == "This API key has expired."
        assert response.json()["error"]["code"] == "invalid_api_key"

    @pytest.mark.parametrize("seconds", [0, 59, -1, 10**10])
    def test_odd_lifetimes_are_refused(self, operator: Tenant, seconds: int) -> None:
        body = {"name": "n", "expires_in_seconds": seconds}
        assert operator.client.post(KEYS, json=body).status_code == 400

    def test_lists_are_paged_and_by_project(self, operator: Tenant) -> None:
        made = [create(operator, project="p")["id"] for _ in range(3)]
        create(operator, project="q")
        project = operator.client.get(f"{KEYS}/{made[0]}").json()["project"]["id"]
        first = operator.client.get(KEYS, params={"project": project, "limit": 2}).json()
        rest = operator.client.get(
            KEYS, params={"project": project, "after": first["data"][-1]["id"]}
        ).json()
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert [key["id"] for key in first["data"] + rest["data"]] == made[::-1]


class TestRotate:
    def rotate(self, operator: Tenant, key_id: object, **body: object) -> dict[str, object]:
        response = operator.client.post(f"{KEYS}/{key_id}/rotate", json=body or None)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def test_the_old_key_works_until_its_grace_is_over(
        self, operator: Tenant, anonymous: TestClient, place: Place
    ) -> None:
        old = create(operator, user="ada", scopes=["customer", "reviewer"])
        new = self.rotate(operator, old["id"], grace_seconds=600)
        same = ("name", "user", "project", "scopes", "expires_at")
        assert [new[field] for field in same] == [old[field] for field in same]
        assert new["key"] != old["key"]
        assert [call(anonymous, key["key"]) for key in (old, new)] == [200, 200]
        stored = place.session.get_one(ApiKey, old["id"], populate_existing=True)
        assert stored.expires_at is not None
        assert (stored.expires_at - utc_now()).total_seconds() == pytest.approx(600, abs=5)
        stored.expires_at = utc_now()
        place.session.commit()
        assert [call(anonymous, key["key"]) for key in (old, new)] == [401, 200]

    def test_without_grace_the_old_key_ends_at_once(
        self, operator: Tenant, anonymous: TestClient
    ) -> None:
        old = create(operator)
        new = self.rotate(operator, old["id"], grace_seconds=0)
        assert [call(anonymous, key["key"]) for key in (old, new)] == [401, 200]

    def test_by_default_the_grace_is_a_day_but_never_beyond_the_keys_own_end(
        self, operator: Tenant, place: Place
    ) -> None:
        lasting, short = create(operator), create(operator, expires_in_seconds=60)
        for key in (lasting, short):
            self.rotate(operator, key["id"])
        ends = [
            place.session.get_one(ApiKey, key["id"], populate_existing=True).expires_at
            for key in (lasting, short)
        ]
        left = [(end - utc_now()).total_seconds() for end in ends if end is not None]
        assert left == [pytest.approx(24 * 3600, abs=5), pytest.approx(60, abs=5)]

    def test_a_dead_key_is_not_replaced(self, operator: Tenant) -> None:
        made = create(operator)
        operator.client.delete(f"{KEYS}/{made['id']}")
        response = operator.client.post(f"{KEYS}/{made['id']}/rotate")
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "key_is_dead"

    def test_the_last_operator_key_may_be_rotated_but_its_successor_stays(
        self, operator: Tenant, place: Place, anonymous: TestClient
    ) -> None:
        own = place.session.scalars(
            select(ApiKey).where(ApiKey.scopes.contains([Scope.OPERATOR.value]))
        ).one()
        new = self.rotate(operator, own.id, grace_seconds=3600)
        # The old one still works, but not for long: it does not count.
        response = operator.client.delete(f"{KEYS}/{new['id']}")
        assert response.json()["error"]["code"] == "last_operator_key"
        assert operator.client.delete(f"{KEYS}/{own.id}").status_code == 200

    def test_only_for_operators(self, customer: Tenant, operator: Tenant) -> None:
        made = create(operator)
        assert customer.client.post(f"{KEYS}/{made['id']}/rotate").status_code == 403
        assert customer.client.get(f"{KEYS}/{made['id']}").status_code == 403


class TestHeaders:
    @pytest.mark.parametrize(
        ("header", "code"),
        [
            ("openai-organization", "mismatched_organization"),
            ("openai-project", "mismatched_project"),
        ],
    )
    def test_they_match_the_key_or_nothing_is_answered(
        self, customer: Tenant, stranger: Tenant, header: str, code: str
    ) -> None:
        own = {
            "openai-organization": customer.project.organization_id,
            "openai-project": customer.project.id,
        }
        others = {
            "openai-organization": stranger.project.organization_id,
            "openai-project": stranger.project.id,
        }
        assert customer.client.get("/v1/files", headers=own).status_code == 200
        assert customer.client.get("/v1/files", headers={header: ""}).status_code == 200
        for path in ("/v1/files", "/v1/files/file-x"):
            answered = customer.client.get(path)
            assert answered.headers["openai-organization"] == customer.project.organization_id
        for wrong in (others[header], own[header].upper(), "x" * 300):
            response = customer.client.get("/v1/files", headers={**own, header: wrong})
            assert response.status_code == 401
            assert response.json()["error"]["code"] == code


class TestViewer:
    def test_sees_every_tenant_and_changes_nothing(
        self, operator: Tenant, anonymous: TestClient
    ) -> None:
        token = create(operator, scopes=["viewer"])["key"]
        headers = {"authorization": f"Bearer {token}"}
        assert anonymous.get("/v1/reviews", headers=headers).status_code == 200
        assert anonymous.get("/v1/audit", headers=headers).status_code == 200
        for method, path in (
            ("POST", "/v1/fine_tuning/jobs/ftjob-x/cancel"),
            ("DELETE", "/v1/models/anything"),
            ("POST", "/v1/webhook_endpoints"),
        ):
            answer = anonymous.request(method, path, headers=headers, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "viewer_only")

    def test_with_another_scope_it_takes_nothing_away(
        self, operator: Tenant, anonymous: TestClient
    ) -> None:
        token = create(operator, scopes=["viewer", "customer"])["key"]
        answer = anonymous.post(
            "/v1/fine_tuning/jobs/ftjob-x/cancel", headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 404
