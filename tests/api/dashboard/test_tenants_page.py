"""The pages of tenants: who sees what, what it costs, and what operators change."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.dashboard.tenants import tenant_list
from api.dashboard.tenants.tenant_list import Use
from api.dashboard.tenants.tenant_page import draw_risk
from api.organization.use import count_use
from models.api_key import ApiKey
from models.audit import AuditEntry
from models.base import utc_now
from models.job import Job, JobStatus
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import PolicyRules, SafetyPolicy
from models.project import Organization, Project
from models.rate import Rate
from models.risk import RiskStep, TunedModel
from models.scope import Scope
from models.webhook import WebhookEndpoint, WebhookEventType
from tests.api.conftest import Place, Tenant, make_tenant
from tests.api.dashboard.conftest import SignIn, csrf, text_of

TENANTS = "/dashboard/tenants"


@pytest.fixture
def page(operator: Tenant, sign_in: SignIn) -> TestClient:
    """An operator's browser."""
    return sign_in(operator.token)


def names(html: str) -> list[str]:
    return re.findall(r'c-tenant"><a href="[^"]+">([^<]+)<', html)


def post(client: TestClient, address: str, **fields: object) -> Response:
    form = {"csrf": csrf(client.get("/dashboard/jobs")), **fields}
    answer: Response = client.post(address, data=form)
    return answer


def address(tenant: Tenant, part: str = "") -> str:
    return f"{TENANTS}/{tenant.project.id}" + (f"/{part}" if part else "")


def actions(customer: Tenant, key: ApiKey) -> dict[str, dict[str, object]]:
    """Everything that changes something, with a form that would do it."""
    return {
        TENANTS: {"name": "new"},
        address(customer): {"priority": "high"},
        address(customer, "archive"): {"confirmation": customer.project.name},
        address(customer, "keys"): {"name": "k", "scopes": ["customer"]},
        address(customer, f"keys/{key.id}/rotate"): {},
        address(customer, f"keys/{key.id}/revoke"): {},
    }


def key_of(session: Session, tenant: Tenant) -> ApiKey:
    return session.scalars(select(ApiKey).where(ApiKey.project_id == tenant.project.id)).one()


class TestWho:
    def test_customers_do_not_get_in(self, customer: Tenant, sign_in: SignIn) -> None:
        client = sign_in(customer.token)
        for part in (
            TENANTS,
            address(customer),
            address(customer, "usage"),
            address(customer, "risk"),
        ):
            assert client.get(part).status_code == 403

    def test_nobody_gets_in_without_a_key(self, visitor: TestClient) -> None:
        assert visitor.get(TENANTS).status_code == 303

    @pytest.mark.parametrize("scope", [Scope.VIEWER, Scope.REVIEWER, Scope.PROVIDER])
    def test_other_staff_see_everything_and_change_nothing(
        self, app: FastAPI, place: Place, customer: Tenant, sign_in: SignIn, scope: Scope
    ) -> None:
        client = sign_in(make_tenant(app, place, place.project("staff"), scope).token)
        for part in (TENANTS, address(customer)):
            html = client.get(part).text.split("<main")[1]
            assert customer.project.name in html
            assert 'method="post"' not in html
        key = key_of(place.session, customer)
        before = place.session.scalar(select(func.count()).select_from(ApiKey))
        for target, fields in actions(customer, key).items():
            assert post(client, target, **fields).status_code == 403, target
        place.session.expire_all()
        assert place.session.scalar(select(func.count()).select_from(ApiKey)) == before
        assert key_of(place.session, customer).revoked_at is None

    def test_every_form_needs_its_token(
        self, page: TestClient, place: Place, customer: Tenant
    ) -> None:
        key = key_of(place.session, customer)
        for target, fields in actions(customer, key).items():
            answer = page.post(target, data={"csrf": "guess", **fields})
            assert answer.status_code == 403, target

    def test_unknown_tenant_and_another_tenants_key_do_not_exist(
        self, page: TestClient, place: Place, customer: Tenant, stranger: Tenant
    ) -> None:
        assert page.get(f"{TENANTS}/proj-none").status_code == 404
        key = key_of(place.session, stranger)
        for action in ("rotate", "revoke"):
            answer = post(page, address(customer, f"keys/{key.id}/{action}"))
            assert answer.status_code == 404


class TestList:
    def test_shows_use_against_limits(
        self, page: TestClient, place: Place, customer: Tenant, aligned: ModelVersion
    ) -> None:
        customer.project.quota_jobs_queued = 2
        customer.project.quota_training_tokens_month = 1_000
        place.job(customer.project, aligned)
        place.job(customer.project, aligned)
        place.job(
            customer.project,
            aligned,
            status=JobStatus.SUCCEEDED,
            finished_at=utc_now(),
            trained_tokens=850,
        )
        count_use(place.session)
        place.session.commit()
        row = text_of(page.get(TENANTS, params={"q": "acme"}).text)
        assert re.search(r"acme .*?2 of 2 used up", row)
        assert re.search(r"850 of 1,000 85%", row)

    def test_says_what_was_not_counted_yet(self, page: TestClient, customer: Tenant) -> None:
        assert "not counted yet" in page.get(TENANTS).text

    def test_shows_the_risk_of_the_newest_model_against_the_policy(
        self, page: TestClient, place: Place, customer: Tenant, aligned: ModelVersion
    ) -> None:
        version = place.version("ft:x", VersionKind.TUNED, parent=aligned, project=customer.project)
        place.evaluation(version, harmful=10).tenant_risk = 42.4
        rules = PolicyRules(max_tenant_risk=40).model_dump(mode="json")
        place.session.add(SafetyPolicy(version=90, rules=rules, project_id=customer.project.id))
        place.session.commit()
        text = text_of(page.get(TENANTS, params={"q": "acme"}).text)
        assert re.search(r"own policy .* 42 of 40 above", text)

    def test_searches_names_organizations_and_ids(
        self, page: TestClient, place: Place, customer: Tenant
    ) -> None:
        place.session.add(Project(name="Zeta", organization=Organization(name="Grove Group")))
        place.session.commit()
        assert names(page.get(TENANTS, params={"q": "ACM"}).text) == ["acme"]
        assert names(page.get(TENANTS, params={"q": "grove"}).text) == ["Zeta"]
        assert names(page.get(TENANTS, params={"q": customer.project.id}).text) == ["acme"]
        assert "No tenant is called like “%”." in page.get(TENANTS, params={"q": "%"}).text

    def test_archived_ones_are_shown_when_asked_for(
        self, page: TestClient, place: Place, customer: Tenant
    ) -> None:
        customer.project.archived_at = utc_now()
        place.session.commit()
        assert "acme" not in names(page.get(TENANTS).text)
        assert "acme" in names(page.get(TENANTS, params={"archived": True}).text)

    def test_pages_by_key_without_gap_or_repeat(
        self, page: TestClient, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tenant_list, "PAGE_SIZE", 3)
        moment = utc_now() - timedelta(days=3)
        for number in range(8):
            place.project(f"same {number}").created_at = moment
        place.session.commit()
        seen: list[str] = []
        at: str | None = TENANTS
        while at:
            html = page.get(at).text
            seen += names(html)
            older = re.search(r'href="([^"]+)">Older', html)
            at = older[1].replace("&amp;", "&") if older else None
        count = place.session.scalar(select(func.count()).select_from(Project))
        assert len(seen) == len(set(seen)) == count

    def test_costs_the_same_queries_however_long(
        self, page: TestClient, place: Place, statements: list[str]
    ) -> None:
        page.get(TENANTS)
        statements.clear()
        page.get(TENANTS)
        before = len(statements)
        for number in range(20):
            place.project(f"more {number}")
        count_use(place.session)
        place.session.commit()
        statements.clear()
        page.get(TENANTS)
        assert len(statements) == before <= 8
        assert not any("FROM jobs" in statement for statement in statements)

    def test_hostile_names_stay_text(self, page: TestClient, place: Place) -> None:
        made = place.project("<script>alert(1)</script>")
        place.session.commit()
        for part in (TENANTS, f"{TENANTS}/{made.id}"):
            html = page.get(part).text
            assert "<script>alert" not in html
            assert "&lt;script&gt;alert" in html

    def test_makes_a_tenant(self, page: TestClient, place: Place) -> None:
        answer = post(page, TENANTS, name="Umbra", organization="Umbra Inc", priority="low")
        made = place.session.scalars(select(Project).where(Project.name == "Umbra")).one()
        assert answer.headers["location"] == f"{TENANTS}/{made.id}"
        assert made.priority == "low"
        assert post(page, TENANTS, name="Umbra").status_code == 409


class TestTenantPage:
    def test_runs_nothing_inline_and_has_unique_ids(
        self, page: TestClient, customer: Tenant
    ) -> None:
        for part in (TENANTS, address(customer)):
            html = page.get(part).text
            assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", html)
            ids = re.findall(r'\sid="([^"]+)"', html)
            assert len(ids) == len(set(ids))

    def test_shows_keys_with_scopes_and_last_use_and_no_secret(
        self, page: TestClient, place: Place, customer: Tenant
    ) -> None:
        key = key_of(place.session, customer)
        key.last_used_at = utc_now() - timedelta(hours=3)
        key.user_name = "ada@acme.example"
        place.session.commit()
        html = page.get(address(customer)).text
        assert re.search(
            rf"ada@acme.example · …{re.escape(key.hint)} .*? customer 3 h ago never", text_of(html)
        )
        assert customer.token not in html
        assert key.token_sha256 not in html

    def test_shows_the_risk_with_the_jobs_behind_it(
        self, page: TestClient, place: Place, customer: Tenant, aligned: ModelVersion
    ) -> None:
        for number, harmful in enumerate((1, 90)):
            job = place.job(customer.project, aligned, status=JobStatus.SUCCEEDED)
            version = place.version(
                f"ft:tiny:acme::{number}",
                VersionKind.TUNED,
                gate=Gate.BLOCKED if harmful > 15 else Gate.RELEASED,
                parent=aligned,
                project=customer.project,
                job=job,
            )
            evaluation = place.evaluation(version, harmful=harmful)
            evaluation.tenant_risk = float(harmful)
            evaluation.created_at = utc_now() - timedelta(days=2 - number)
            version.created_at = evaluation.created_at
        place.session.commit()
        assert f'hx-get="{address(customer)}/risk"' in page.get(address(customer)).text
        html = page.get(address(customer, "risk")).text
        text = text_of(html)
        assert "<html" not in html
        # 10 for the attempt, 88 points of excess and 88 of drift above the aligned model's 2%.
        assert "Now 186 the policy sets no limit" in text
        assert re.search(r"ft:tiny:acme::1 1 d ago 90\.0% Blocked attempt 90\.0", text)
        assert re.search(r"ft:tiny:acme::0 2 d ago 1\.0% Released – 1\.0", text)
        assert f'href="/dashboard/jobs/{job.id}"' in html
        assert "<polyline" in html

    def test_shows_the_policy_in_force_and_the_webhooks(
        self, page: TestClient, place: Place, customer: Tenant
    ) -> None:
        assert "The service’s" in page.get(address(customer)).text
        rules = PolicyRules(max_harmful_score=7).model_dump(mode="json")
        place.session.add(SafetyPolicy(version=90, rules=rules, project_id=customer.project.id))
        place.session.add(
            WebhookEndpoint(
                project_id=customer.project.id,
                name="hook",
                url="https://user:secret@hooks.example/path?token=abc",
                event_types=[WebhookEventType.MODEL_HELD],
                sealed_secret="sealed",
                secret_hint="abcd",
                disabled_at=utc_now(),
                disabled_reason="It was gone.",
            )
        )
        place.session.commit()
        html = page.get(address(customer)).text
        text = text_of(html)
        assert "version 90 Its own" in text
        assert "Harmful score at most 7%" in text
        assert re.search(r"hook Off 1 kinds? of events .*? It was gone\.", text)
        # An address of theirs may carry a secret.
        assert "token=abc" not in html

    def test_months_are_bars_with_the_numbers_behind_them(
        self, page: TestClient, place: Place, customer: Tenant, aligned: ModelVersion
    ) -> None:
        place.job(
            customer.project,
            aligned,
            status=JobStatus.SUCCEEDED,
            finished_at=utc_now(),
            trained_tokens=1234,
            gpu_seconds=61.0,
        )
        place.session.commit()
        assert f'hx-get="{address(customer)}/usage"' in page.get(address(customer)).text
        html = page.get(address(customer, "usage")).text
        assert "<html" not in html
        assert html.count("<rect") == 4 * 12
        assert re.search(rf"{utc_now():%Y-%m} 1 1,234 61 0", text_of(html))

    def test_number_of_queries_is_bounded(
        self, page: TestClient, place: Place, customer: Tenant, statements: list[str]
    ) -> None:
        for number in range(12):
            place.key(customer.project, Scope.CUSTOMER)
            place.session.add(
                WebhookEndpoint(
                    project_id=customer.project.id,
                    name=str(number),
                    url="https://hooks.example",
                    event_types=[],
                    sealed_secret="s",
                    secret_hint="h",
                )
            )
        count_use(place.session)
        place.session.commit()
        statements.clear()
        page.get(address(customer))
        assert len(statements) <= 14
        assert not any("FROM jobs" in statement for statement in statements)


class TestChanging:
    def test_limits_and_priority_are_stored_and_written_down(
        self, page: TestClient, place: Place, customer: Tenant
    ) -> None:
        customer.project.quota_bytes_stored = 7
        place.session.commit()
        answer = post(
            page,
            address(customer),
            name="acme",
            priority="high",
            jobs_running="3",
            jobs_queued="0",
            bytes_stored="",
        )
        assert answer.headers["location"] == address(customer)
        project = place.session.get_one(Project, customer.project.id, populate_existing=True)
        assert project.priority == "high"
        assert project.quota_jobs_running == 3
        # 0 is no limit; empty is the service's.
        assert project.quota_jobs_queued == 0
        assert project.quota_bytes_stored is None
        entry = place.session.scalars(
            select(AuditEntry).where(AuditEntry.action == "project.updated")
        ).one()
        assert entry.details["quotas"]["jobs_running"] == 3

    @pytest.mark.parametrize(
        "fields", [{"jobs_running": "-1"}, {"jobs_queued": "many"}, {"priority": "top"}]
    )
    def test_faulty_limit_is_named_and_nothing_changes(
        self, page: TestClient, place: Place, customer: Tenant, fields: dict[str, str]
    ) -> None:
        answer = post(page, address(customer), name="other", **fields)
        assert answer.status_code == 400
        assert next(iter(fields)) in answer.text
        project = place.session.get_one(Project, customer.project.id, populate_existing=True)
        assert project.name == "acme"

    def test_archive_needs_the_name_and_ends_the_keys(
        self, page: TestClient, place: Place, customer: Tenant, aligned: ModelVersion
    ) -> None:
        job = place.job(customer.project, aligned)
        place.session.commit()
        assert post(page, address(customer, "archive"), confirmation="acm").status_code == 400
        assert customer.client.get("/v1/files").status_code == 200
        assert post(page, address(customer, "archive"), confirmation="acme").status_code == 303
        assert customer.client.get("/v1/files").status_code == 401
        place.session.expire_all()
        assert place.session.get_one(Job, job.id).status == JobStatus.CANCELLED
        html = page.get(address(customer)).text
        assert "Archived" in html
        assert 'method="post"' not in html.split("<main")[1]

    def test_the_operators_own_tenant_is_not_archived_away(
        self, page: TestClient, operator: Tenant
    ) -> None:
        answer = post(page, address(operator, "archive"), confirmation=operator.project.name)
        assert answer.status_code == 409


class TestKeys:
    def make(self, page: TestClient, tenant: Tenant, **fields: object) -> Response:
        asked: dict[str, object] = {"name": "laptop", "scopes": ["customer"], **fields}
        return post(page, address(tenant, "keys"), **asked)

    def token_in(self, answer: Response) -> str:
        found = re.search(r'id="token"[^>]* value="(titer-[^"]+)"', answer.text)
        assert found, answer.text
        return found[1]

    def test_secret_is_in_the_answer_of_its_creation_alone(
        self, page: TestClient, app: FastAPI, customer: Tenant, capfd: pytest.CaptureFixture[str]
    ) -> None:
        answer = self.make(page, customer, user="ada", days="30")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert "location" not in answer.headers
        token = self.token_in(answer)
        client = TestClient(app, headers={"authorization": f"Bearer {token}"})
        assert client.get("/v1/files").status_code == 200
        for part in (address(customer), TENANTS, "/dashboard/jobs"):
            assert token not in page.get(part).text
        said = capfd.readouterr()
        assert token not in said.out + said.err

    def test_key_is_as_it_was_asked_for(
        self, page: TestClient, place: Place, customer: Tenant
    ) -> None:
        self.make(page, customer, user="ada", days="30", scopes=["customer", "viewer"])
        key = place.session.scalars(select(ApiKey).where(ApiKey.name == "laptop")).one()
        assert key.project_id == customer.project.id
        assert key.user_name == "ada"
        assert key.scopes == ["customer", "viewer"]
        assert key.expires_at is not None
        assert abs(key.expires_at - utc_now() - timedelta(days=30)) < timedelta(minutes=1)
        entry = place.session.scalars(
            select(AuditEntry).where(AuditEntry.action == "key.created")
        ).one()
        assert entry.subject_id == key.id

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"name": ""}, "name"),
            ({"scopes": []}, "scopes"),
            ({"scopes": ["emperor"]}, "scopes"),
            ({"days": "0"}, "expires_in_seconds"),
            ({"days": "99999"}, "expires_in_seconds"),
            ({"days": "soon"}, "expires_in_seconds"),
        ],
    )
    def test_faulty_field_is_named(
        self, page: TestClient, customer: Tenant, fields: dict[str, object], said: str
    ) -> None:
        answer = self.make(page, customer, **fields)
        assert answer.status_code == 400
        assert said in answer.text

    def test_unknown_tenant_gets_no_key_and_is_not_made(
        self, page: TestClient, place: Place
    ) -> None:
        answer = post(page, f"{TENANTS}/nobody/keys", name="k", scopes=["customer"])
        assert answer.status_code == 404
        assert place.session.scalar(select(Project.id).where(Project.name == "nobody")) is None

    def test_rotation_shows_the_new_one_and_ends_the_old_one_later(
        self, page: TestClient, place: Place, app: FastAPI, customer: Tenant
    ) -> None:
        key = key_of(place.session, customer)
        answer = post(page, address(customer, f"keys/{key.id}/rotate"), grace_hours="1")
        client = TestClient(app, headers={"authorization": f"Bearer {self.token_in(answer)}"})
        assert client.get("/v1/files").status_code == 200
        assert customer.client.get("/v1/files").status_code == 200
        old = place.session.get_one(ApiKey, key.id, populate_existing=True)
        assert old.expires_at is not None
        assert old.expires_at < utc_now() + timedelta(hours=2)

    def test_revoking_ends_it_at_once(
        self, page: TestClient, place: Place, customer: Tenant
    ) -> None:
        key = key_of(place.session, customer)
        answer = post(page, address(customer, f"keys/{key.id}/revoke"))
        assert answer.headers["location"] == f"{address(customer)}#keys"
        assert customer.client.get("/v1/files").status_code == 401
        assert "revoked just now" in text_of(page.get(address(customer)).text)

    def test_the_last_operators_key_stays(
        self, page: TestClient, place: Place, operator: Tenant
    ) -> None:
        key = key_of(place.session, operator)
        assert post(page, address(operator, f"keys/{key.id}/revoke")).status_code == 409


class TestUse:
    @pytest.mark.parametrize(
        ("used", "limit", "standing"),
        [(5, 0, ""), (7, 10, "within"), (8, 10, "near"), (10, 10, "full"), (12, 10, "full")],
    )
    def test_standing(self, used: int, limit: int, standing: str) -> None:
        assert Use("jobs_queued", used, limit, True).standing == standing


class TestDrawRisk:
    def step(self, hours: float, risk: float | None) -> RiskStep:
        model = TunedModel("m", None, Rate(count=1, n=100), Gate.RELEASED, 15.0)
        return RiskStep(utc_now() - timedelta(hours=hours), None, model, risk)

    def test_rises_at_each_decision_from_the_oldest_on(self) -> None:
        line = draw_risk([self.step(0, 20), self.step(10, 0)], limit=None)
        assert line is not None
        assert line.points == "0,40.00 100.00,40.00 100.00,3.64"
        assert line.limit_y is None

    def test_one_alone_is_no_line(self) -> None:
        assert draw_risk([self.step(0, 20), self.step(5, None)], limit=10) is None
