"""API keys over HTTP: shown once, for operators, and never all gone."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from models.api_key import ApiKey, Project, Scope
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
