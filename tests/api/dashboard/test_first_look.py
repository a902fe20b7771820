"""What somebody sees before there is anything to see."""

from __future__ import annotations

from api.seed.states import Provider
from tests.api.dashboard.conftest import SignIn


def test_operator_is_told_how_to_start(newcomer: Provider, sign_in: SignIn) -> None:
    client = sign_in(newcomer.operator_token)
    jobs = client.get("/dashboard/jobs").text
    assert "make demo" in jobs
    assert "titer align" in jobs
    assert "titer models add" in client.get("/dashboard/models").text


def test_customer_is_told_its_own_way(newcomer: Provider, sign_in: SignIn) -> None:
    client = sign_in(newcomer.customer_token)
    assert "titer jobs create" in client.get("/dashboard/jobs").text
    assert "has not released an aligned model" in client.get("/dashboard/models").text


def test_empty_list_is_live(newcomer: Provider, sign_in: SignIn) -> None:
    client = sign_in(newcomer.operator_token)
    assert "data-live" in client.get("/dashboard/jobs").text.split("<main")[1]
