"""Who gets in, how long they stay, and what a foreign form can do: nothing."""

from __future__ import annotations

import base64

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from api.seed.states import Provider
from models.api_key import ApiKey
from models.base import utc_now
from tests.api.dashboard.conftest import SignIn, csrf

PAGES = ("/dashboard/jobs", "/dashboard/jobs/ftjob-x", "/dashboard/models")
COOKIE = "titer_dashboard"


def enter(client: TestClient, token: str, **form: str) -> int:
    page = client.get("/dashboard/login")
    answer = client.post("/dashboard/login", data={"csrf": csrf(page), "api_key": token, **form})
    return answer.status_code


class TestAnonymous:
    @pytest.mark.parametrize("page", PAGES)
    def test_is_led_to_the_sign_in_page_and_back(self, visitor: TestClient, page: str) -> None:
        answer = visitor.get(page)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/dashboard/login?next=%2Fdashboard%2F")

    def test_enters_by_the_short_address(self, visitor: TestClient) -> None:
        assert visitor.get("/dashboard").headers["location"] == "/dashboard/"

    def test_gets_no_curves(self, visitor: TestClient) -> None:
        assert visitor.get("/dashboard/jobs/ftjob-x/curves.json").status_code == 303

    def test_live_part_sends_the_whole_page_to_sign_in(self, visitor: TestClient) -> None:
        answer = visitor.get("/dashboard/jobs", headers={"HX-Request": "true"})
        assert answer.status_code == 401
        assert answer.headers["hx-redirect"].startswith("/dashboard/login")

    @pytest.mark.parametrize("action", ["cancel", "review"])
    def test_decides_nothing(self, visitor: TestClient, action: str) -> None:
        visitor.get("/dashboard/login")
        answer = visitor.post(f"/dashboard/jobs/ftjob-x/{action}", data={"csrf": "guess"})
        assert answer.status_code == 403


class TestSignIn:
    def test_unknown_key_is_refused_with_a_sentence(
        self, visitor: TestClient, newcomer: Provider
    ) -> None:
        form = {"csrf": csrf(visitor.get("/dashboard/login")), "api_key": "titer-unknown"}
        answer = visitor.post("/dashboard/login", data=form)
        assert answer.status_code == 401
        assert "unknown, has expired or was revoked" in answer.text
        assert "titer-unknown" not in answer.text

    def test_key_is_taken_with_blanks_around_it(
        self, visitor: TestClient, newcomer: Provider
    ) -> None:
        assert enter(visitor, f"  {newcomer.customer_token}\n") == 303

    def test_cookie_is_closed_to_scripts_and_other_sites_and_holds_no_token(
        self, visitor: TestClient, newcomer: Provider
    ) -> None:
        form = {
            "csrf": csrf(visitor.get("/dashboard/login")),
            "api_key": newcomer.operator_token,
        }
        cookie = visitor.post("/dashboard/login", data=form).headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "path=/dashboard" in cookie
        held = base64.b64decode(visitor.cookies[COOKIE].strip('"').split(".")[0] + "==")
        assert newcomer.operator.id.encode() in held
        assert newcomer.operator_token.encode() not in held

    def test_form_from_elsewhere_is_refused(self, visitor: TestClient, newcomer: Provider) -> None:
        answer = visitor.post("/dashboard/login", data={"api_key": newcomer.operator_token})
        assert answer.status_code == 403
        assert visitor.get("/dashboard/jobs").status_code == 303

    def test_form_token_changes_with_the_sign_in(
        self, visitor: TestClient, newcomer: Provider
    ) -> None:
        before = csrf(visitor.get("/dashboard/login"))
        enter(visitor, newcomer.operator_token)
        assert csrf(visitor.get("/dashboard/jobs")) != before

    @pytest.mark.parametrize(
        "elsewhere",
        [
            "https://evil.example/",
            "//evil.example",
            "/v1/models",
            "/dashboard/\\evil",
            "/dashboard/\n",
        ],
    )
    def test_never_leads_elsewhere(
        self, visitor: TestClient, newcomer: Provider, elsewhere: str
    ) -> None:
        page = visitor.get("/dashboard/login", params={"next": elsewhere})
        form = {"csrf": csrf(page), "api_key": newcomer.operator_token, "next": elsewhere}
        answer = visitor.post("/dashboard/login", data=form)
        assert answer.headers["location"] == "/dashboard/"


class TestSession:
    @pytest.mark.parametrize("end", ["revoked_at", "expires_at", "archived_at"])
    def test_ends_with_the_key(
        self, newcomer: Provider, sign_in: SignIn, session: Session, end: str
    ) -> None:
        client = sign_in(newcomer.customer_token)
        assert client.get("/dashboard/jobs").status_code == 200
        key = session.get_one(ApiKey, newcomer.customer.id)
        setattr(key.project if end == "archived_at" else key, end, utc_now())
        session.commit()
        assert client.get("/dashboard/jobs").status_code == 303

    def test_tampered_cookie_is_nobody(self, newcomer: Provider, sign_in: SignIn) -> None:
        client = sign_in(newcomer.customer_token)
        value = client.cookies[COOKIE]
        client.cookies.clear()
        client.cookies.set(COOKIE, "A" + value[1:], path="/dashboard")
        assert client.get("/dashboard/jobs").status_code == 303

    def test_sign_out_ends_it(self, newcomer: Provider, sign_in: SignIn) -> None:
        client = sign_in(newcomer.customer_token)
        token = csrf(client.get("/dashboard/jobs"))
        assert client.post("/dashboard/logout", data={"csrf": token}).status_code == 303
        assert client.get("/dashboard/jobs").status_code == 303

    def test_opens_nothing_of_the_api(self, newcomer: Provider, sign_in: SignIn) -> None:
        assert sign_in(newcomer.operator_token).get("/v1/models").status_code == 401
