"""Models and tenants in a real browser: what is started, made, changed and drawn there."""

# The fixtures of the browser stand where the other tests of it are.
# ruff: noqa: F811

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from models.api_key import ApiKey, Project
from models.job import Job, JobKind
from models.model_version import ModelVersion
from models.safety_set import CERTIFICATION_FILES
from models.storage import Storage
from tests.api.dashboard.seed_models import seed_certified, seed_tuned
from tests.api.dashboard.seed_tenants import seed_tenants
from tests.api.dashboard.test_browser import Site, browser, complaints, site  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

TITER = "/dashboard/models/sandbox-titer"


@pytest.fixture
def page(browser: Browser, site: Site, storage: Storage, complaints: list[str]) -> Iterator[Page]:
    """A signed-in operator's page over certified models and many tenants."""
    with site.sessions.begin() as session:
        owner = session.get_one(Project, site.provider.operator.project_id)
        seed_certified(session, storage, owner, with_pictures=False)
        titer = session.get_one(ModelVersion, "sandbox-titer")
        seed_tuned(session, site.provider.other, titer, count=120)
        seed_tenants(session, site.provider)
        for name in CERTIFICATION_FILES:
            storage.put(f"{titer.safety_prefix}/{name}", b"{}\n" * 1_000)
    context = browser.new_context(base_url=site.url, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto("/dashboard/login?next=/dashboard/models")
    page.get_by_label("API key").fill(site.provider.operator_token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/dashboard/models")
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None,
    )
    yield page
    context.close()


def test_figures_are_drawn_with_names_at_their_curves(page: Page, complaints: list[str]) -> None:
    page.get_by_role("link", name="sandbox-titer", exact=True).click()
    figures = page.locator("[data-figure]")
    figures.first.locator("canvas").wait_for()
    assert figures.count() == 5
    for index in range(1, 5):
        canvas = figures.nth(index).locator("canvas")
        painted = canvas.evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)"
        )
        assert painted, index
    # To the right of the plot stand the names; without them that strip is empty.
    named = figures.first.locator("canvas").evaluate(
        "c => c.getContext('2d').getImageData(c.width - 60, 0, 50, c.height).data.some(v => v > 0)"
    )
    assert named
    figures.first.locator(".u-over").hover()
    figures.first.locator(".reading").get_by_text("titer").wait_for()
    figures.first.get_by_text("The numbers").click()
    assert figures.first.locator("tbody tr").count() == 4
    assert complaints == []


def test_starts_a_drill(page: Page, site: Site, complaints: list[str]) -> None:
    page.goto(TITER)
    page.get_by_text("Attack drill…").click()
    form = page.get_by_role("form", name="Start an attack drill")
    form.get_by_label("mix").uncheck()
    form.get_by_label("identity").check()
    form.get_by_label("Steps").fill("24")
    form.get_by_role("button", name="Start the drill").click()
    page.wait_for_url(re.compile("/dashboard/jobs/ftjob-"))
    with site.sessions() as session:
        job = session.get_one(Job, page.url.rsplit("/", 1)[1])
        assert job.kind == JobKind.CERTIFY
        assert {c["family"] for c in job.recipe["customers"]} == {"pure", "identity", "style"}
        assert job.recipe["customers"][0]["steps"] == 24
    page.goto(TITER)
    page.get_by_role("list", name="Under way").get_by_role("link", name="Drill").wait_for()
    assert complaints == []


def test_measures_a_model_anew(page: Page, site: Site, complaints: list[str]) -> None:
    page.goto(TITER)
    page.get_by_text("Measure anew…").click()
    page.get_by_role("button", name="Start the evaluation").click()
    page.wait_for_url(re.compile("/dashboard/jobs/ftjob-"))
    with site.sessions() as session:
        job = session.get_one(Job, page.url.rsplit("/", 1)[1])
        assert (job.kind, job.model_id) == (JobKind.EVALUATE, "sandbox-titer")
    page.goto(TITER)
    page.get_by_role("list", name="Under way").get_by_role("link", name="Evaluation").wait_for()
    assert complaints == []


def test_starts_an_alignment(page: Page, site: Site, complaints: list[str]) -> None:
    page.goto("/dashboard/models/sandbox-base")
    page.get_by_text("Align…").click()
    form = page.get_by_role("form", name="Start an alignment")
    form.get_by_label("Method").select_option("booster")
    form.get_by_label("Preset").select_option("modern")
    form.get_by_label("Name").fill("sandbox-again")
    form.get_by_label("Steps").fill("300")
    form.get_by_role("button", name="Start the alignment").click()
    page.wait_for_url(re.compile("/dashboard/jobs/ftjob-"))
    page.get_by_role("heading", name="sandbox-again").wait_for()
    with site.sessions() as session:
        job = session.get_one(Job, page.url.rsplit("/", 1)[1])
        assert job.recipe["train"]["steps"] == 300
    assert complaints == []


def test_makes_a_key_shows_it_once_and_revokes_it(
    page: Page, site: Site, browser: Browser, complaints: list[str]
) -> None:
    page.goto(f"/dashboard/tenants/{site.provider.customer.project_id}")
    page.get_by_text("New key…").click()
    form = page.get_by_role("form", name="Make a key")
    form.get_by_label("Name").fill("robot")
    form.get_by_label("Days until it ends").fill("7")
    form.get_by_role("button", name="Make the key").click()
    token = page.get_by_label("API key").input_value()
    assert token.startswith("titer-")
    assert token not in page.url
    page.get_by_role("link", name="I have copied it").click()
    page.wait_for_url("**#keys")
    assert token not in page.content()

    context = browser.new_context(base_url=site.url)
    visitor = context.new_page()
    visitor.goto("/dashboard/login?next=/dashboard/jobs")
    visitor.get_by_label("API key").fill(token)
    visitor.get_by_role("button", name="Sign in").click()
    visitor.wait_for_url("**/dashboard/jobs")

    row = page.get_by_role("row", name=re.compile("^robot"))
    row.get_by_text("Revoke…").click()
    row.get_by_role("button", name="Revoke robot").click()
    page.get_by_role("row", name=re.compile("^robot .* revoked")).wait_for()
    visitor.goto("/dashboard/jobs")
    assert "/dashboard/login" in visitor.url
    context.close()
    with site.sessions() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.name == "robot")).one()
        assert key.revoked_at is not None
    assert complaints == []


def test_changes_a_quota(page: Page, site: Site, complaints: list[str]) -> None:
    page.goto("/dashboard/tenants")
    page.get_by_role("link", name="Acme Support").click()
    page.locator(".month-charts").wait_for()
    page.get_by_role("region", name="Decisions that make the risk").wait_for()
    page.get_by_text("Change limits…").click()
    form = page.get_by_role("form", name="Change limits and priority")
    form.get_by_label("Jobs waiting").fill("7")
    form.get_by_label("Bytes stored").fill("")
    form.get_by_label("Priority").select_option("low")
    form.get_by_role("button", name="Save").click()
    page.get_by_text("of 7").wait_for()
    with site.sessions() as session:
        project = session.get_one(Project, site.provider.customer.project_id)
        assert (project.quota_jobs_queued, project.quota_bytes_stored) == (7, None)
        assert project.priority == "low"
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_no_page_is_wider_than_the_screen(
    page: Page, site: Site, width: int, scheme: str, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    tenant = f"/dashboard/tenants/{site.provider.customer.project_id}"
    tuned = "/dashboard/models/ft:sandbox-base:acme:tickets:R4kd92Lm"
    for address in ("/dashboard/models", TITER, tuned, "/dashboard/tenants", tenant):
        page.goto(address)
        page.wait_for_load_state("networkidle")
        for summary in page.locator("main summary").all():
            summary.evaluate("element => { element.parentElement.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
