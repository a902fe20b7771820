"""No page of the dashboard breaks a rule of axe-core's: every kind of page that links lead to, in light and dark, wide and narrow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import pytest
from sqlalchemy import select

from api.seed.demo import Demo, seed_demo
from models.answers import keep_answers
from models.data_risk import Screening
from models.evaluation import Evaluation
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from tests.api.dashboard.test_browser import ARGUMENTS as ARGUMENTS
from tests.api.dashboard.test_browser import Service
from tests.api.dashboard.test_browser import browser as browser
from tests.models.factories import make_answer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

START = "/dashboard/overview"
#: What pages must be among those that the crawl finds, lest it should find too few.
MUST_SEE = {
    "overview", "jobs", "jobs/*", "jobs/*/data", "jobs/*/answers", "reviews", "reviews/*", "models", "models/*",
    "tenants", "tenants/*", "policies", "policies/*", "audit", "system",
}  # fmt: skip
LOOKS = ((1440, "light"), (1440, "dark"), (390, "light"))


@dataclass(frozen=True)
class Filled:
    """A full database, and a job in it whose training file was screened."""

    demo: Demo
    screened: str


@pytest.fixture
def filled(database_url: str, storage: Storage) -> Filled:
    engine = make_engine(database_url)
    with session_factory(engine).begin() as session:
        demo = seed_demo(session, storage, points=40, jobs=60)
        kept = keep_answers(storage, [make_answer()])
        for evaluation in session.scalars(select(Evaluation)):
            evaluation.report = {**evaluation.report, "answers_sha256": kept}
        screened = session.scalars(select(Screening.job_id)).first()
    engine.dispose()
    assert screened
    return Filled(demo, screened)


@pytest.fixture
def page(
    browser: Browser, filled: Filled, database_url: str, redis_url: str, storage: Storage
) -> Iterator[Page]:
    service = Service(
        Settings(database_url=database_url, redis_url=redis_url, storage_url=storage.url)
    )
    context = browser.new_context(base_url=f"http://127.0.0.1:{service.port}")
    page = context.new_page()
    page.goto(START)
    page.get_by_label("API key").fill(filled.demo.provider.operator_token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**{START}")
    yield page
    context.close()
    service.stop()


def shape(address: str) -> str:
    """Name the kind of a page: its path, with whatever names one object left open."""
    path = urlsplit(address).path.removeprefix("/dashboard/").strip("/")
    return "/".join(part if re.fullmatch(r"[a-z_]+", part) else "*" for part in path.split("/"))


def links(page: Page) -> Iterator[str]:
    """Give the addresses of pages that this one leads to."""
    for address in page.eval_on_selector_all(
        "a[href]:not([download])", "all => all.map(a => a.href)"
    ):
        if urlsplit(address).path.startswith("/dashboard/"):
            yield urljoin(page.url, address).split("#")[0]


def test_every_kind_of_page_keeps_the_rules(page: Page, filled: Filled) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe, found, seen = Axe(), [], set()
    # The first job that a link leads to need not be one with screened rows.
    waiting = [page.url, urljoin(page.url, f"/dashboard/jobs/{filled.screened}/data")]
    while waiting:
        address = waiting.pop(0)
        if shape(address) in seen:
            continue
        seen.add(shape(address))
        answer = page.context.request.get(address)
        if "text/html" not in answer.headers.get("content-type", ""):
            continue
        for width, scheme in LOOKS:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(address)
            page.wait_for_timeout(300)
            for broken in axe.run(page).response["violations"]:
                where = [node["target"] for node in broken["nodes"][:3]]
                found.append(f"{shape(address)} {width} {scheme}: {broken['id']} at {where}")
            if page.evaluate("document.documentElement.scrollWidth") > width:
                found.append(f"{shape(address)} {width}: wider than the screen")
        waiting += links(page)
    assert not found, "\n".join(found)
    assert seen >= MUST_SEE, MUST_SEE - seen
