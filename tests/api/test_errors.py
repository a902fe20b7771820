"""Every error in one envelope, whatever caused it, and nothing of the inside in it."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.orm import sessionmaker

from api.app import create_app
from api.errors import field_path, sentence
from models.session import make_engine
from models.settings import Settings
from tests.api.conftest import Tenant

SECRET = "inside"


def envelope_of(client: TestClient, method: str, path: str) -> tuple[int, dict[str, object]]:
    response = client.request(method, path)
    assert response.headers["x-request-id"].startswith("req_")
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["message"]
    return response.status_code, error


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("PUT", "/v1/files", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "unknown_url"),
    ],
)
def test_unknown_addresses(
    anonymous: TestClient, method: str, path: str, status: int, code: str
) -> None:
    found, error = envelope_of(anonymous, method, path)
    assert (found, error["code"]) == (status, code)


def test_a_defect_shows_nothing_of_the_inside(settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError(SECRET)

    status, error = envelope_of(TestClient(app, raise_server_exceptions=False), "GET", "/broken")
    assert status == 500
    assert error["type"] == "server_error"
    assert SECRET not in str(error)


def test_request_ids_differ(anonymous: TestClient) -> None:
    ids = {anonymous.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize("path", ["/healthz", "/v1/files"])
def test_a_database_that_is_down_is_said_and_may_be_retried(
    customer: Tenant, app: FastAPI, path: str
) -> None:
    app.state.sessions = sessionmaker(make_engine("postgresql://titer@127.0.0.1:1/none"))
    response = customer.client.get(path)
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "server_error"
    assert "x-should-retry" not in response.headers
    assert "127.0.0.1" not in response.text


def test_health(anonymous: TestClient) -> None:
    assert anonymous.get("/healthz").json() == {"status": "ok"}


class TestBadJson:
    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"null", b"[]", b'"x"', b"\xff", b"[" * 5000, b'{"model": "\\ud800"}'],
    )
    def test_it_is_a_fault_of_the_request(self, customer: Tenant, content: bytes) -> None:
        response = customer.client.post(
            "/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


class TestFieldPath:
    @pytest.mark.parametrize(
        ("location", "kind", "body", "path"),
        [
            (("body", "a", "b", "int"), "int_type", {"a": {"b": "x"}}, "a.b"),
            (("body", "a", "list[str]", 1), "string_type", {"a": ["x", 1]}, "a[1]"),
            (("body", "m", "booster", "lambda"), "x", {"m": {"lambda": -1}}, "m.lambda"),
            (("body", "m", "booster", "alpha"), "missing", {"m": {}}, "m.alpha"),
            (("body",), "missing", None, ""),
            (("query", "limit"), "int_parsing", None, "limit"),
        ],
    )
    def test_branches_of_unions_are_left_out(
        self, location: tuple[str | int, ...], kind: str, body: object, path: str
    ) -> None:
        assert field_path({"loc": location, "type": kind}, body) == path

    def test_many_faults_are_cut_short(self) -> None:
        body = {str(i): 1 for i in range(9)}
        faults = [{"loc": ("body", str(i)), "msg": "bad", "type": "x"} for i in range(9)]
        text, param = sentence(faults, body)
        assert text.endswith("and 4 more.")
        assert param == "0"
