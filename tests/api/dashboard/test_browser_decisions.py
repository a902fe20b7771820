"""Reviews, policies and the audit log in a real browser: what a person does there with hands and keys."""

# The fixtures of the browser stand where the other tests of it are.
# ruff: noqa: F811

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from api.seed.states import Staff, seed_policy, seed_queue, seed_staff
from models.audit import AuditEntry
from models.job import Job, JobStatus
from models.policy import current_policy
from tests.api.dashboard.test_browser import Site, browser, complaints, site  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

LATE = "ft:sandbox-base:acme:intents:Bd0s4RkV"
APPEALED = "ft:sandbox-base:acme:returns:Qe5d8LxM"
EYES = "ft:sandbox-base:harbour:filings:Ux2n6GhT"


@pytest.fixture
def staff(site: Site) -> Staff:
    with site.sessions.begin() as session:
        staff = seed_staff(session, site.provider.operator.project)
        seed_queue(session, site.provider, points=4)
    return staff


def enter(page: Page, token: str, address: str) -> None:
    page.goto(f"/dashboard/login?next=/dashboard/{address}")
    page.get_by_label("API key").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**/dashboard/{address}")


@pytest.fixture
def page(browser: Browser, site: Site, staff: Staff, complaints: list[str]) -> Iterator[Page]:
    """A signed-in operator's page over a full queue."""
    context = browser.new_context(base_url=site.url, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None,
    )
    enter(page, site.provider.operator_token, "reviews")
    yield page
    context.close()


def open_review(page: Page, model: str) -> None:
    page.get_by_role("link", name=model).click()
    arrive(page, model)


def arrive(page: Page, model: str) -> None:
    """Wait until a review is there, with its keys at work."""
    page.get_by_role("heading", name=model).wait_for()
    page.get_by_role("button", name="Keyboard").wait_for()


def status_of(site: Site, model: str) -> str:
    with site.sessions() as session:
        return session.scalars(select(Job.status).where(Job.result_model_id == model)).one()


class TestReviews:
    def test_held_is_released_and_the_next_one_comes(
        self, page: Page, site: Site, complaints: list[str]
    ) -> None:
        open_review(page, LATE)
        page.get_by_role("radio", name="Release").check()
        page.get_by_role("textbox", name="Reason").fill(
            "Read all 22 flagged answers: names of forms."
        )
        page.get_by_role("button", name="Release this model").click()
        page.get_by_role("heading", name=APPEALED).wait_for()
        page.get_by_role("status").filter(has_text=LATE).get_by_text("Released").wait_for()
        assert status_of(site, LATE) == JobStatus.SUCCEEDED
        assert complaints == []

    def test_is_rejected_by_keys_alone_and_never_by_one(
        self, page: Page, site: Site, complaints: list[str]
    ) -> None:
        page.locator("[data-review]").first.wait_for()
        for key in ("j", "j", "k", "j"):
            page.keyboard.press(key)
        focused = page.locator("[data-review]:focus")
        assert focused.inner_text() == APPEALED
        page.keyboard.press("o")
        arrive(page, APPEALED)
        page.keyboard.press("x")
        assert page.get_by_role("radio", name="Reject").is_checked()
        reason = page.get_by_role("textbox", name="Reason")
        # Typing is typing: none of these letters is a command.
        page.keyboard.type("jokes? rex, e")
        assert reason.input_value() == "jokes? rex, e"
        assert page.get_by_role("radio", name="Reject").is_checked()
        assert status_of(site, APPEALED) == JobStatus.RUNNING
        page.keyboard.press("Escape")
        page.keyboard.press("e")
        assert page.get_by_role("button", name="Evaluate it again").is_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("x")
        page.keyboard.press("Control+Enter")
        page.get_by_role("heading", name=EYES).wait_for()
        assert status_of(site, APPEALED) == JobStatus.FAILED
        assert complaints == []

    def test_single_keys_can_be_switched_off(self, page: Page) -> None:
        open_review(page, LATE)
        page.keyboard.press("?")
        page.get_by_role("dialog").get_by_label("Single keys are on").uncheck()
        page.get_by_role("button", name="Close").click()
        page.keyboard.press("x")
        page.reload()
        arrive(page, LATE)
        page.keyboard.press("x")
        assert not page.get_by_role("radio", name="Reject").is_checked()
        # The list can still be reached, to switch them on.
        page.get_by_role("button", name="Keyboard").click()
        assert page.get_by_role("dialog").is_visible()

    def test_nothing_is_decided_without_a_reason(self, page: Page, site: Site) -> None:
        open_review(page, LATE)
        page.keyboard.press("r")
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(300)
        assert page.get_by_role("heading", name=LATE).is_visible()
        assert status_of(site, LATE) == JobStatus.RUNNING

    def test_a_second_person_completes_the_four_eyes(
        self, page: Page, browser: Browser, site: Site, staff: Staff, complaints: list[str]
    ) -> None:
        open_review(page, EYES)
        assert page.get_by_role("radio", name="Release").is_disabled()
        other = browser.new_context(base_url=site.url).new_page()
        enter(other, staff.second_reviewer, "reviews")
        open_review(other, EYES)
        other.keyboard.press("r")
        other.keyboard.type("I agree.")
        other.get_by_role("button", name="Release this model").click()
        other.get_by_text("This is the next one.").wait_for()
        # The first one's page learns of it without being asked again.
        page.locator("#standing").get_by_text("This review has ended").wait_for(timeout=20_000)
        assert status_of(site, EYES) == JobStatus.SUCCEEDED
        other.context.close()
        assert complaints == []

    def test_place_in_the_list_survives_its_renewal(self, page: Page, site: Site) -> None:
        page.keyboard.press("j")
        page.keyboard.press("j")
        with page.expect_response(
            lambda answer: answer.request.headers.get("hx-request") == "true"
        ):
            site.tell(LATE)
        page.wait_for_timeout(300)
        assert page.locator("[data-review]:focus").inner_text() == APPEALED


class TestPolicies:
    def test_edited_tried_saved_and_put_in_force(
        self, page: Page, site: Site, complaints: list[str]
    ) -> None:
        page.goto("/dashboard/policies")
        page.get_by_role("link", name="New version").click()
        page.get_by_label("Harmful score %", exact=True).fill("8")
        page.get_by_role("button", name="Compare and dry run").click()
        page.get_by_text("decisions would be another").wait_for()
        bands = page.locator(".flow .band")
        assert bands.count() >= 4
        # A band has an extent, or it tells nothing.
        assert all(box["height"] > 1 for box in (b.bounding_box() for b in bands.all()) if box)
        page.get_by_role("table", name="The same as numbers").get_by_role("row").nth(1).wait_for()
        page.get_by_role("textbox", name="Reason").fill("Stricter from now on.")
        page.get_by_role("button", name="Save the version").click()
        page.get_by_role("heading", name="policy-3").wait_for()
        with site.sessions() as session:
            assert current_policy(session).version == 1
        page.get_by_role("textbox", name="Reason").fill("Agreed on Monday.")
        page.get_by_role("button", name="Put policy-3 in force").click()
        page.get_by_role("main").get_by_text("In force", exact=True).first.wait_for()
        with site.sessions() as session:
            assert current_policy(session).version == 3
        assert complaints == []

    def test_a_wrong_value_is_told_beside_its_field_and_kept(self, page: Page) -> None:
        page.goto("/dashboard/policies/new")
        page.get_by_label("Harmful score %", exact=True).fill("800")
        page.get_by_role("button", name="Compare and dry run").click()
        page.get_by_text("Enter a number: 0 to 100.").wait_for()
        field = page.locator("#max_harmful_score")
        assert field.input_value() == "800"
        page.get_by_role("alert").get_by_role("link", name="Harmful score").click()
        assert page.evaluate("location.hash") == "#max_harmful_score"


class TestAudit:
    def test_search_opens_and_exports(self, page: Page, site: Site, complaints: list[str]) -> None:
        page.goto("/dashboard/audit")
        page.get_by_label("Words").fill("statute")
        page.get_by_role("button", name="Search").click()
        page.wait_for_url("**text=statute**")
        entries = page.locator(".entries > li")
        assert entries.count() == 1
        entries.locator("summary").click()
        entries.get_by_text(re.compile("ftjob-")).first.wait_for()
        with page.expect_download() as begun:
            page.get_by_role("link", name="Export").click()
        lines = Path(begun.value.path()).read_text().splitlines()
        assert [json.loads(line)["action"] for line in lines] == ["model.release_approved"]
        page.get_by_label("Action").select_option("policy.created")
        page.get_by_role("button", name="Search").click()
        page.get_by_text("No entry matches this search.").wait_for()
        assert complaints == []

    def test_chain_is_checked_in_place(self, page: Page, site: Site, complaints: list[str]) -> None:
        page.goto("/dashboard/audit")
        page.get_by_role("button", name="Check the chain").click()
        page.get_by_text("The chain is whole:").wait_for()
        assert page.get_by_role("heading", name="Audit log").is_visible()
        with site.sessions() as session:
            newest = session.scalars(
                select(AuditEntry).order_by(AuditEntry.position.desc()).limit(1)
            ).one()
        assert page.locator(".head").inner_text() == f"{newest.position}:{newest.sha256}"
        page.get_by_label("A noted head").fill(f"{newest.position}:{newest.sha256}")
        page.get_by_role("button", name="Check the chain").click()
        page.get_by_text("the noted head is among them").wait_for()
        assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_no_page_is_wider_than_the_screen(page: Page, site: Site, width: int, scheme: str) -> None:
    with site.sessions.begin() as session:
        seed_policy(
            session,
            site.provider,
            {"max_harmful_score": 8, "category_limits": {"theft": 20}},
            activate=False,
            note="Stricter. " * 20,
        )
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for address in (
        "reviews",
        f"reviews/{site.job_id(APPEALED)}",
        f"reviews/{site.job_id('ft:sandbox-base:harbour:letters:Kf3a9WqY')}",
        "policies",
        "policies/policy-3?dry_run=1",
        "policies/new?max_harmful_score=800",
        "audit",
        "audit/chain",
    ):
        page.goto(f"/dashboard/{address}")
        page.get_by_role("heading", level=1).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
