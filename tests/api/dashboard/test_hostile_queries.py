"""What a hostile query does to a page: a sentence for a person, never a 500."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from api.seed.states import Provider
from tests.api.dashboard.conftest import SignIn

NUL, LONG, SURROGATE, SQL = "%00", "x" * 5000, "%ED%A0%80", "'%3B drop table jobs--"
PLACES = (
    "jobs?search=", "jobs?tenant=", "jobs?base=", "jobs?before=", "jobs?since=", "jobs/", "jobs/%s/data?after=",
    "models?q=", "models?parent=", "models?gate=", "models?after=", "models/",
    "tenants?q=", "tenants?after=", "tenants/",
    "reviews?after=", "reviews/", "policies?after=", "policies/", "policies/new?start=",
    "audit?text=", "audit?action=", "audit?actor=", "audit?subject=", "audit?project=", "audit?since=", "audit?after=",
)  # fmt: skip


@pytest.fixture
def operator(newcomer: Provider, sign_in: SignIn) -> TestClient:
    return sign_in(newcomer.operator_token)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "hostile", [NUL, LONG, SURROGATE, SQL], ids=["nul", "long", "bytes", "sql"]
)
def test_is_answered_for_a_person(operator: TestClient, place: str, hostile: str) -> None:
    answer = operator.get(f"/dashboard/{place}{hostile}".replace("%s", "x"))
    assert answer.status_code in {200, 400, 404, 414}, answer.status_code
    assert "<h1" in answer.text or answer.status_code == 414
