"""Signing in at an OpenID provider with a real browser: what its policies and cookies make of the way there and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from benchmarks.upload_memory import free_port
from models.settings import Settings
from models.storage import Storage
from tests.api.dashboard.openid_provider import CLIENT_ID, CLIENT_SECRET, OpenIdProvider
from tests.api.dashboard.test_browser import Service, browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]
pytestmark = pytest.mark.browser


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider().running() as provider:
        yield provider


@pytest.fixture
def page(
    browser: Browser,
    provider: OpenIdProvider,
    database_url: str,
    redis_url: str,
    storage: Storage,
) -> Iterator[Page]:
    port = free_port()
    # Another site than the provider's, whose address is a number: cookies and policies tell them apart.
    address = f"http://localhost:{port}"
    settings = Settings(
        database_url=database_url,
        redis_url=redis_url,
        storage_url=storage.url,
        public_url=address,
        oidc_issuer=provider.issuer,
        oidc_client_id=CLIENT_ID,
        oidc_client_secret=SecretStr(CLIENT_SECRET),
        oidc_name="Northwind SSO",
        oidc_roles={"titer-ops": "operator"},
    )
    service = Service(settings, port)
    with closing(browser.new_context(base_url=address)) as context:
        yield context.new_page()
    service.stop()


def test_there_and_back(page: Page, provider: OpenIdProvider) -> None:
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    provider.claims = {"sub": "u-1", "groups": ["titer-ops"], "name": "Ada"}
    page.goto("/dashboard/models")
    page.get_by_role("link", name="Sign in with Northwind SSO").click()
    page.wait_for_url("**/dashboard/models")
    page.get_by_text("default /").wait_for()
    assert page.get_by_text("operator", exact=True).is_visible()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("link", name="Sign in with Northwind SSO").wait_for()
    assert complaints == []


def test_somebody_without_a_role_reads_why(page: Page, provider: OpenIdProvider) -> None:
    provider.claims = {"sub": "u-2", "groups": ["everybody"]}
    page.goto("/dashboard/jobs")
    page.get_by_role("link", name="Sign in with Northwind SSO").click()
    page.get_by_role("alert").filter(has_text="Your account has no role here.").wait_for()
