"""The page of the installation: who sees it, and what of it."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from api.organization.use import count_use
from api.seed.fleet import seed_workers
from api.seed.states import Provider
from models.api_key import create_key
from models.scope import Scope
from models.worker import Worker
from tests.api.dashboard.conftest import SignIn
from tests.api.dashboard.test_overview import section

ADDRESS = "/dashboard/system"


@pytest.fixture
def operator_page(newcomer: Provider, sign_in: SignIn) -> TestClient:
    return sign_in(newcomer.operator_token)


def html_of(client: TestClient) -> str:
    answer = client.get(ADDRESS)
    assert answer.status_code == 200, answer.text
    return str(answer.text)


class TestWhoMaySee:
    @pytest.mark.parametrize("scope", [Scope.VIEWER, Scope.REVIEWER, Scope.PROVIDER])
    def test_staff_without_the_settings(
        self, session: Session, newcomer: Provider, sign_in: SignIn, scope: Scope
    ) -> None:
        token = create_key(session, newcomer.operator.project, "s", frozenset({scope}))[1]
        session.commit()
        html = html_of(sign_in(token))
        assert "Settings are shown to operators." in html
        assert "TITER_LEASE_SECONDS" not in html

    def test_operators_with_them(self, operator_page: TestClient) -> None:
        shown = section(html_of(operator_page), "settings")
        assert "TITER_LEASE_SECONDS 60" in shown
        assert "TITER_MAX_FILE_BYTES 65536 changed" in shown
        assert "TITER_SIGNING_KEY secret, not set" in shown

    def test_no_customer(self, newcomer: Provider, sign_in: SignIn) -> None:
        client = sign_in(newcomer.customer_token)
        assert client.get(ADDRESS).status_code == 403
        assert ADDRESS not in client.get("/dashboard/jobs").text

    def test_nobody_who_has_not_signed_in(self, newcomer: Provider, visitor: TestClient) -> None:
        assert visitor.get(ADDRESS).status_code == 303


class TestPage:
    def test_tells_every_part_with_a_word(
        self, operator_page: TestClient, session: Session
    ) -> None:
        count_use(session)
        seed_workers(session)
        session.commit()
        html = html_of(operator_page)
        parts = section(html, "parts")
        assert re.search(r"Database Well It holds [\d.]+ MiB\.", parts)
        assert "Redis Down It does not answer." in parts
        assert "Sweeper Well" in parts
        assert "Workers Look 1 alive, 1 fell silent." in parts
        assert re.search(
            r"Migrations Well The database is at \w{12} , as this code wants it", parts
        )
        assert "Needs a look" in html

    def test_says_what_to_do_about_old_migrations(
        self, operator_page: TestClient, session: Session
    ) -> None:
        session.execute(text("update alembic_version set version_num = '000000000000'"))
        session.commit()
        parts = section(html_of(operator_page), "parts")
        assert "Migrations Down The database is at 000000000000 ; this code wants" in parts
        assert "titer db upgrade" in parts

    def test_points_out_a_worker_of_another_version(
        self, operator_page: TestClient, session: Session
    ) -> None:
        assert "No worker has spoken" in section(html_of(operator_page), "workers")
        seed_workers(session)
        session.get_one(Worker, "spare:977").version = "0.0.9"
        session.commit()
        shown = section(html_of(operator_page), "workers")
        assert "spare:977 Alive cpu · Titer 0.0.9 not the api's" in shown
        assert shown.count("not the api's") == 1

    def test_runs_nothing_inline_and_has_unique_ids(self, operator_page: TestClient) -> None:
        html = html_of(operator_page)
        assert not re.search(r"<script(?![^>]*\ssrc=)", html)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
        ids = re.findall(r'\sid="([^"]+)"', html)
        assert len(ids) == len(set(ids))

    def test_live_part_is_the_part_alone(self, operator_page: TestClient) -> None:
        html = operator_page.get(ADDRESS, headers={"HX-Request": "true"}).text
        assert html.lstrip().startswith(f'<div id="system" data-live hx-get="{ADDRESS}"')

    def test_costs_few_statements(self, operator_page: TestClient, statements: list[str]) -> None:
        statements.clear()
        html_of(operator_page)
        assert len(statements) <= 12
