"""Signing in at an OpenID provider: who gets in, as what, and every way in which nobody does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard import openid as openid_module
from api.dashboard.openid import OpenId
from models.api_key import ApiKey
from models.audit import AuditEntry, verify
from models.base import utc_now
from models.settings import Settings
from tests.api.conftest import Tenant
from tests.api.dashboard.conftest import csrf
from tests.api.dashboard.openid_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    Claims,
    OpenIdProvider,
    encoded,
)

# A server is started, and signed for.
pytestmark = pytest.mark.long

ROLES = {"titer-ops": "operator", "safety": "reviewer", "ml": "provider", "watchers": "viewer"}


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider().running() as provider:
        yield provider


@pytest.fixture
def provider(shared_provider: OpenIdProvider) -> Iterator[OpenIdProvider]:
    kept = dict(vars(shared_provider))
    shared_provider.discovery, shared_provider.answer = {}, {}
    yield shared_provider
    vars(shared_provider).update(kept)


@pytest.fixture
def settings(settings: Settings, provider: OpenIdProvider) -> Settings:
    return settings.model_copy(
        update={
            "public_url": "http://testserver",
            "oidc_issuer": provider.issuer,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": SecretStr(CLIENT_SECRET),
            "oidc_name": "Northwind <SSO>",
            "oidc_roles": ROLES,
        }
    )


@pytest.fixture
def app(app: FastAPI, settings: Settings) -> FastAPI:
    app.state.openid = OpenId(settings)
    return app


def go(browser: TestClient, next: str = "/dashboard/jobs") -> str:
    """Begin, let the provider vouch, and give the address to which it sends the browser back."""
    begun = browser.get("/dashboard/login/openid", params={"next": next})
    assert begun.status_code == 303, begun.text
    vouched = httpx.get(begun.headers["location"], follow_redirects=False)
    assert vouched.status_code == 302
    return vouched.headers["location"]


def enter(browser: TestClient) -> Any:
    return browser.get(go(browser))


@pytest.fixture
def browser(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


def people(session: Session) -> list[ApiKey]:
    session.expire_all()
    return list(session.scalars(select(ApiKey).where(ApiKey.identity.is_not(None))))


def is_in(browser: TestClient) -> bool:
    return browser.get("/dashboard/jobs").status_code == 200


class TestEntering:
    def test_the_page_offers_it_beside_the_key(self, browser: TestClient) -> None:
        page = browser.get("/dashboard/login", params={"next": "/dashboard/models"}).text
        assert "Sign in with Northwind &lt;SSO&gt;" in page
        assert 'href="/dashboard/login/openid?next=/dashboard/models"' in page
        assert 'name="api_key"' in page

    def test_a_person_with_a_role_is_in_and_led_to_the_page_asked_for(
        self, browser: TestClient, session: Session, provider: OpenIdProvider
    ) -> None:
        provider.claims = {
            "sub": "u-7",
            "groups": ["everybody", "safety"],
            "email": "Ada@Northwind.example",
            "email_verified": True,
            "name": "Ada Lovelace",
        }
        came = browser.get(go(browser, "/dashboard/models"))
        assert came.status_code == 303
        assert came.headers["location"] == "/dashboard/models"
        page = browser.get("/dashboard/jobs")
        assert "Ada@Northwind.example" in page.text
        assert ">reviewer<" in page.text
        (key,) = people(session)
        assert key.identity == f"{provider.issuer} u-7"
        assert (key.name, key.user_name) == ("Ada@Northwind.example", "Ada Lovelace")
        assert (key.scopes, key.project.name) == (["reviewer"], "default")
        assert key.expires_at is not None
        assert timedelta(hours=7) < key.expires_at - utc_now() <= timedelta(hours=8)

    def test_it_is_in_the_audit_log(
        self, browser: TestClient, session: Session, provider: OpenIdProvider
    ) -> None:
        provider.claims = {"sub": "u-8", "groups": ["ml"]}
        enter(browser)
        (key,) = people(session)
        entry = session.scalars(select(AuditEntry).order_by(AuditEntry.position.desc())).first()
        assert entry is not None
        assert (entry.action, entry.subject_id) == ("person.signed_in", key.id)
        assert (entry.actor_key_id, entry.actor_name) == (key.id, "u-8")
        assert entry.details == {"name": "u-8", "scopes": ["provider"]}
        assert verify(session).is_whole

    def test_a_second_time_is_the_same_key_with_the_roles_of_today(
        self, browser: TestClient, session: Session, provider: OpenIdProvider
    ) -> None:
        provider.claims = {"sub": "u-1", "groups": ["titer-ops"]}
        enter(browser)
        (before,) = people(session)
        first = before.id
        before.expires_at = utc_now()
        session.commit()
        assert not is_in(browser)
        provider.claims = {"sub": "u-1", "groups": ["watchers", "safety"]}
        enter(browser)
        (key,) = people(session)
        assert (key.id, key.scopes) == (first, ["reviewer", "viewer"])
        assert is_in(browser)

    def test_people_are_told_apart_by_subject_whatever_they_are_called(
        self, browser: TestClient, session: Session, provider: OpenIdProvider
    ) -> None:
        same = {"name": "Ada", "email": "ada@x.example", "email_verified": True}
        for subject in ("u-1", "U-1", "u-1 "):
            provider.claims = {"sub": subject, "groups": ["safety"], **same}
            enter(browser)
        assert len({key.id for key in people(session)}) == 3

    def test_nothing_is_left_of_the_visit_before(
        self, browser: TestClient, operator: Tenant, provider: OpenIdProvider
    ) -> None:
        form = {"csrf": csrf(browser.get("/dashboard/login")), "api_key": operator.token}
        browser.post("/dashboard/login", data=form)
        before = csrf(browser.get("/dashboard/jobs"))
        provider.claims = {"sub": "u-1", "groups": ["safety"]}
        enter(browser)
        page = browser.get("/dashboard/jobs")
        assert csrf(page) != before
        assert ">reviewer<" in page.text
        held = base64.b64decode(browser.cookies["titer_dashboard"].strip('"').split(".")[0] + "==")
        assert set(json.loads(held)) == {"key_id", "csrf"}

    @pytest.mark.parametrize("next", ["https://evil.example/", "//evil.example", "/v1/models"])
    def test_it_never_leads_elsewhere(self, browser: TestClient, next: str) -> None:
        assert browser.get(go(browser, next)).headers["location"] == "/dashboard/"

    def test_hostile_names_are_only_text(
        self, browser: TestClient, session: Session, provider: OpenIdProvider
    ) -> None:
        provider.claims = {
            "sub": "<script>alert(1)</script>" + "x" * 200,
            "groups": ["safety"],
            "name": "line\nbreak",
            "email": ["no", "text"],
            "email_verified": True,
        }
        enter(browser)
        (key,) = people(session)
        assert (len(key.name), key.user_name) == (100, None)
        assert "<script>alert" not in browser.get("/dashboard/jobs").text


class TestRoles:
    @pytest.mark.parametrize(
        "groups",
        [
            None,
            [],
            ["everybody"],
            "",
            "titer-op",
            "titer-ops,other",
            "titer-ops other",
            ["TITER-OPS"],
            ["titer-ops "],
            [["titer-ops"]],
            {"titer-ops": True},
            True,
            0,
            ["operator"],
        ],
    )
    def test_without_one_nobody_is_let_in(
        self, browser: TestClient, session: Session, provider: OpenIdProvider, groups: object
    ) -> None:
        provider.claims = {"sub": "u-1", "groups": groups}
        came = enter(browser)
        assert came.status_code == 403
        assert "has no role here" in came.text
        assert people(session) == []
        assert not is_in(browser)

    def test_one_word_is_as_good_as_a_list(
        self, browser: TestClient, session: Session, provider: OpenIdProvider
    ) -> None:
        provider.claims = {"sub": "u-1", "groups": "watchers"}
        enter(browser)
        assert people(session)[0].scopes == ["viewer"]

    def test_who_has_lost_it_is_out_everywhere(
        self, app: FastAPI, browser: TestClient, session: Session, provider: OpenIdProvider
    ) -> None:
        provider.claims = {"sub": "u-1", "groups": ["titer-ops"]}
        enter(browser)
        assert is_in(browser)
        provider.claims = {"sub": "u-1", "groups": []}
        with TestClient(app, follow_redirects=False) as other:
            assert enter(other).status_code == 403
        assert not is_in(browser)
        (key,) = people(session)
        assert key.scopes == []
        newest = session.scalars(select(AuditEntry).order_by(AuditEntry.position.desc())).first()
        assert newest is not None
        assert newest.action == "person.shut_out"
        # Not for ever: the provider decides.
        provider.claims = {"sub": "u-1", "groups": ["safety"]}
        enter(browser)
        assert is_in(browser)

    @pytest.mark.parametrize(
        ("claims", "is_let_in"),
        [
            ({"email": "ada@northwind.example", "email_verified": True}, True),
            ({"email": "ada@NORTHWIND.example", "email_verified": True}, True),
            ({"email": "ada@northwind.example", "email_verified": False}, False),
            ({"email": "ada@northwind.example", "email_verified": "true"}, False),
            ({"email": "ada@northwind.example"}, False),
            ({"email": "ada@northwind.example.evil.example", "email_verified": True}, False),
            ({"email": "ada@northwind.example@evil.example", "email_verified": True}, False),
            ({"email": "northwind.example", "email_verified": True}, False),
            ({"email": "@northwind.example", "email_verified": True}, False),
            ({"email": "ada@evil.example@northwind.example", "email_verified": True}, False),
            ({"email": "x" * 200 + "@northwind.example", "email_verified": True}, True),
            ({"email": ["ada@northwind.example"], "email_verified": True}, False),
            ({}, False),
        ],
    )
    def test_domains_narrow_it_to_verified_addresses(
        self,
        app: FastAPI,
        browser: TestClient,
        settings: Settings,
        provider: OpenIdProvider,
        claims: Claims,
        is_let_in: bool,
    ) -> None:
        few = settings.model_copy(update={"oidc_domains": "northwind.example, other.example"})
        app.state.openid = OpenId(few)
        provider.claims = {"sub": "u-1", "groups": ["safety"], **claims}
        assert (enter(browser).status_code == 303) == is_let_in


NOW = int(time.time())


def by_another_key(claims: Claims, key: RSAKey) -> str:
    other = RSAKey.generate_key(2048, {"kid": key.kid})
    return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, other)


def unsigned(claims: Claims, _: RSAKey) -> str:
    parts = ({"alg": "none"}, claims)
    return ".".join(encoded(json.dumps(part).encode()) for part in parts) + "."


def by_the_clients_secret(claims: Claims, key: RSAKey) -> str:
    return jwt.encode({"alg": "HS256", "kid": key.kid}, claims, OctKey.import_key(CLIENT_SECRET))


def by_the_public_key_as_a_secret(claims: Claims, key: RSAKey) -> str:
    head, body = (
        encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": key.kid}, claims)
    )
    secret = key.as_pem(private=False)
    signature = hmac.new(secret, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{encoded(signature)}"


def changed_afterwards(claims: Claims, key: RSAKey) -> str:
    head, _, signature = jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key).split(".")
    body = encoded(json.dumps({**claims, "groups": ["titer-ops"]}).encode())
    return f"{head}.{body}.{signature}"


class TestTokensThatAreRefused:
    def refuse(self, browser: TestClient, session: Session) -> None:
        came = enter(browser)
        assert came.status_code == 403, came.text
        assert "did not vouch for you" in came.text
        assert people(session) == []
        assert not is_in(browser)

    @pytest.mark.parametrize(
        "claims",
        [
            {"nonce": "another"},
            {"nonce": None},
            {"nonce": ""},
            {"aud": "another"},
            {"aud": ["another"]},
            {"aud": None},
            {"aud": "another", "azp": CLIENT_ID},
            {"aud": [CLIENT_ID, "another"]},
            {"aud": [CLIENT_ID, "another"], "azp": "another"},
            {"aud": CLIENT_ID.upper()},
            {"iss": "https://evil.example"},
            {"iss": None},
            {"exp": NOW - 120},
            {"exp": None},
            {"exp": "never"},
            {"iat": NOW + 3600},
            {"iat": None},
            {"nbf": NOW + 3600},
            {"sub": None},
            {"sub": ""},
            {"sub": 7},
            {"sub": "x" * 256},
            {"at_hash": "another"},
        ],
        # Times in them would name the tests otherwise in each process.
        ids="+".join,
    )
    def test_claims(
        self, browser: TestClient, session: Session, provider: OpenIdProvider, claims: Claims
    ) -> None:
        provider.claims = {"sub": "u-1", "groups": ["titer-ops"], **claims}
        self.refuse(browser, session)

    @pytest.mark.parametrize(
        "sign",
        [
            by_another_key,
            unsigned,
            by_the_clients_secret,
            by_the_public_key_as_a_secret,
            changed_afterwards,
            lambda *_: "not a token",
            lambda *_: "",
        ],
    )
    def test_signatures(
        self,
        browser: TestClient,
        session: Session,
        provider: OpenIdProvider,
        sign: Callable[[Claims, RSAKey], str],
    ) -> None:
        provider.claims = {"sub": "u-1", "groups": ["safety"]}
        provider.sign = sign
        self.refuse(browser, session)

    @pytest.mark.parametrize("answer", [{"id_token": None}, {"id_token": 5}, {"id_token": [1]}])
    def test_none_at_all(
        self, browser: TestClient, session: Session, provider: OpenIdProvider, answer: Claims
    ) -> None:
        provider.answer = answer
        self.refuse(browser, session)

    def test_a_key_that_the_provider_has_changed_is_read_anew(
        self,
        browser: TestClient,
        session: Session,
        provider: OpenIdProvider,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        enter(browser)
        provider.key = RSAKey.generate_key(2048, {"kid": "two"})
        # Not at every token that does not hold: a moment ago is new enough.
        provider.asked.clear()
        assert enter(browser).status_code == 403
        assert "/keys" not in provider.asked
        monkeypatch.setattr(openid_module, "KEYS_KEPT_SECONDS", 0.0)
        assert enter(browser).status_code == 303


class TestWhoDidNotBegin:
    def test_the_browser_is_sent_with_a_challenge_and_without_its_answer(
        self, browser: TestClient
    ) -> None:
        begun = browser.get("/dashboard/login/openid")
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["redirect_uri"] == ["http://testserver/dashboard/login/callback"]
        assert asked["code_challenge_method"] == ["S256"]
        assert len(asked["nonce"][0]) >= 32
        assert len(asked["state"][0]) >= 32
        assert "code_verifier" not in asked
        again = parse_qs(urlsplit(browser.get("/dashboard/login/openid").headers["location"]).query)
        for name in ("state", "nonce", "code_challenge"):
            assert again[name] != asked[name]

    def refuse(self, came: Any) -> None:
        assert came.status_code == 403
        assert "was not begun here" in came.text

    def test_a_visit_out_of_nowhere(self, browser: TestClient, provider: OpenIdProvider) -> None:
        provider.asked.clear()
        for query in ("", "?code=x", "?code=x&state=", "?code=x&state=y", "?state=\u00e9"):
            self.refuse(browser.get(f"/dashboard/login/callback{query}"))
        # The provider is not troubled with it.
        assert provider.asked == []

    def test_somebody_elses_way_back(self, app: FastAPI, browser: TestClient) -> None:
        browser.get("/dashboard/login/openid")
        with TestClient(app, follow_redirects=False) as attacker:
            back = go(attacker)
        self.refuse(browser.get(back))
        assert not is_in(browser)

    def test_the_same_way_back_twice(self, app: FastAPI, browser: TestClient) -> None:
        back = go(browser)
        before = browser.cookies["titer_dashboard"]
        assert browser.get(back).status_code == 303
        self.refuse(browser.get(back))
        # Not even with the cookie of that time: the code is used up.
        with TestClient(app, follow_redirects=False) as thief:
            thief.cookies.set("titer_dashboard", before, path="/dashboard")
            assert thief.get(back).status_code == 403
            assert not is_in(thief)

    def test_one_that_comes_too_late(
        self, browser: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openid_module, "BEGUN_SECONDS", -1)
        self.refuse(browser.get(go(browser)))

    def test_a_code_of_another_sign_in(self, app: FastAPI, browser: TestClient) -> None:
        with TestClient(app, follow_redirects=False) as attacker:
            stolen = parse_qs(urlsplit(go(attacker)).query)["code"][0]
        state = parse_qs(urlsplit(go(browser)).query)["state"][0]
        came = browser.get("/dashboard/login/callback", params={"code": stolen, "state": state})
        assert came.status_code == 403
        assert not is_in(browser)

    @pytest.mark.parametrize(
        "query",
        [
            {"error": "access_denied", "error_description": "<b>call 555</b>"},
            {"code": "x", "iss": "https://evil.example"},
            {"code": ""},
            {},
        ],
    )
    def test_a_refusal_is_told_in_our_own_words(
        self, browser: TestClient, query: dict[str, str]
    ) -> None:
        state = parse_qs(urlsplit(go(browser)).query)["state"][0]
        came = browser.get("/dashboard/login/callback", params={"state": state, **query})
        assert came.status_code == 403
        assert "did not vouch for you" in came.text
        assert "555" not in came.text


class TestProvider:
    @pytest.mark.parametrize(
        "discovery",
        [
            {"issuer": "https://evil.example"},
            {"issuer": None},
            {"jwks_uri": None},
            {"jwks_uri": "http://127.0.0.1:1/keys"},
            # Where another scheme than the issuer's may be named, a secret may go in the clear.
            {"token_endpoint": "https://127.0.0.1:1/token"},
            {"authorization_endpoint": "javascript:alert(1)"},
            {"authorization_endpoint": ["http://127.0.0.1:1/"]},
        ],
    )
    def test_one_that_is_not_what_it_should_be_is_not_asked(
        self,
        app: FastAPI,
        browser: TestClient,
        provider: OpenIdProvider,
        settings: Settings,
        discovery: Claims,
    ) -> None:
        provider.discovery = discovery
        app.state.openid = OpenId(settings)
        begun = browser.get("/dashboard/login/openid")
        assert begun.status_code == 502
        assert "does not answer as it should" in begun.text

    def test_while_it_is_away_keys_still_open(
        self, app: FastAPI, browser: TestClient, settings: Settings, operator: Tenant
    ) -> None:
        away = settings.model_copy(update={"oidc_issuer": "http://127.0.0.1:1"})
        app.state.openid = OpenId(away)
        assert browser.get("/dashboard/login/openid").status_code == 502
        form = {"csrf": csrf(browser.get("/dashboard/login")), "api_key": operator.token}
        assert browser.post("/dashboard/login", data=form).status_code == 303

    def test_without_one_there_is_no_such_door(self, app: FastAPI, browser: TestClient) -> None:
        app.state.openid = None
        assert "Sign in with" not in browser.get("/dashboard/login").text
        for address in ("openid", "callback?code=x&state=y"):
            assert browser.get(f"/dashboard/login/{address}").status_code == 404


class TestTheKey:
    @pytest.fixture
    def key(self, browser: TestClient, session: Session, provider: OpenIdProvider) -> ApiKey:
        provider.claims = {"sub": "u-1", "groups": ["titer-ops"]}
        assert enter(browser).status_code == 303
        (key,) = people(session)
        return key

    def test_revoking_it_shuts_the_person_out_for_good(
        self, browser: TestClient, operator: Tenant, key: ApiKey
    ) -> None:
        assert operator.client.delete(f"/v1/keys/{key.id}").status_code == 200
        assert not is_in(browser)
        came = enter(browser)
        assert came.status_code == 403
        assert "was revoked" in came.text
        assert not is_in(browser)

    def test_it_never_gets_a_secret(self, operator: Tenant, key: ApiKey) -> None:
        rotated = operator.client.post(f"/v1/keys/{key.id}/rotate", json={})
        assert rotated.status_code == 409
        assert rotated.json()["error"]["code"] == "key_has_no_secret"

    def test_it_does_not_count_as_the_operators_last_one(
        self, operator: Tenant, key: ApiKey, session: Session
    ) -> None:
        own = session.scalars(select(ApiKey).where(ApiKey.project_id == operator.project.id)).one()
        refused = operator.client.delete(f"/v1/keys/{own.id}")
        assert refused.json()["error"]["code"] == "last_operator_key"
        assert key.why_dead is None
