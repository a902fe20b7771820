"""The dashboard in a real browser: what only a browser can tell. Run by `make test-browser`."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from pydantic import SecretStr
from sqlalchemy import select

from api.app import create_app
from api.seed.states import Provider, seed_all
from models.answers import keep_answers
from models.evaluation import Evaluation
from models.job import Job, append_event, cancel, lock_job
from models.session import SessionFactory, make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from tests.models.factories import make_answer

if TYPE_CHECKING:
    # `make test` collects this file without the `browser` extra.
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HELD = "ft:sandbox-base:acme:tone:Hc81Zx0p"
RUNNING = "ft:sandbox-base:acme:faq-de:Wm3v0TzK"
BLOCKED = "ft:sandbox-base:acme:tickets:P0qs77Ab"


@dataclass
class Site:
    """A running service with a full database."""

    url: str
    provider: Provider
    sessions: SessionFactory
    service: Service

    def tell(self, model: str, message: str = "News") -> None:
        with self.sessions.begin() as session:
            append_event(session, lock_job(session, self.job_id(model)), message)

    def job_id(self, model: str) -> str:
        with self.sessions() as session:
            return session.scalars(select(Job.id).where(Job.result_model_id == model)).one()


class Service:
    """The api on a port of its own, which can go away and come back."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        self._settings = settings
        self.port = port
        self.start()

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        app = create_app(self._settings)
        # A stream whose browser is still there would hold the end.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self._thread.start()
        self._slots = app.state.event_slots
        wait_until(lambda: self._server.started and app.state.changes.is_hearing)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()

    @property
    def open_streams(self) -> int:
        return int(self._slots._open.total())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def site(database_url: str, redis_url: str, storage: Storage) -> Iterator[Site]:
    engine = make_engine(database_url)
    sessions = session_factory(engine)
    with sessions.begin() as session:
        provider = seed_all(session)
    service = Service(
        Settings(
            database_url=database_url,
            redis_url=redis_url,
            storage_url=storage.url,
            session_secret=SecretStr("the same after a restart"),
        )
    )
    yield Site(f"http://127.0.0.1:{service.port}", provider, sessions, service)
    service.stop()
    engine.dispose()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "install Chromium to run these tests"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, site: Site, complaints: list[str]) -> Iterator[Page]:
    """A signed-in operator's page. Whatever the browser complains of fails the test."""
    context = browser.new_context(base_url=site.url, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None,
    )
    page.goto("/dashboard/jobs")
    page.get_by_label("API key").fill(site.provider.operator_token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/dashboard/jobs")
    yield page
    context.close()


def test_signs_in_and_lists_jobs_without_a_complaint(page: Page, complaints: list[str]) -> None:
    page.get_by_role("heading", name="Waiting for your decision").wait_for()
    assert page.get_by_role("row").count() == 12
    page.get_by_role("link", name=re.compile(r"^Failed")).click()
    assert page.get_by_role("row").count() == 3
    assert complaints == []


def test_wrong_key_stays_at_the_door(browser: Browser, site: Site) -> None:
    page = browser.new_page(base_url=site.url)
    page.goto("/dashboard/models")
    page.get_by_label("API key").fill("titer-wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").filter(has_text="unknown, has expired or was revoked").wait_for()
    page.get_by_label("API key").fill(site.provider.customer_token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/dashboard/models")
    page.close()


def test_curves_are_drawn(page: Page, site: Site, complaints: list[str]) -> None:
    page.goto(f"/dashboard/jobs/{site.job_id(BLOCKED)}")
    page.locator("[data-curve=token_accuracy] canvas").wait_for()
    for name in ("train_loss", "canary_loss", "token_accuracy"):
        canvas = page.locator(f"[data-curve={name}] canvas")
        # A canvas on which nothing was drawn is transparent everywhere.
        painted = canvas.evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)"
        )
        assert painted, name
        assert "→" in page.locator(f"[data-curve={name}] output").inner_text()
    page.get_by_text("The numbers").click()
    assert page.locator("[data-curves-numbers] tbody tr").count() > 100
    assert complaints == []


def test_page_follows_a_living_job_to_its_end(
    page: Page, site: Site, complaints: list[str]
) -> None:
    job_id = site.job_id(RUNNING)
    page.goto(f"/dashboard/jobs/{job_id}")
    page.get_by_text("of 300").wait_for()
    drawn = page.locator("[data-curve=train_loss] output")
    drawn.get_by_text("→").wait_for()
    before = drawn.inner_text()
    with site.sessions.begin() as session:
        data = {"stage": "train", "step": 299, "total_steps": 300, "train_loss": 7.25}
        append_event(session, lock_job(session, job_id), "Step", type="metrics", data=data)
    page.get_by_text("299 of 300").wait_for(timeout=8000)
    page.wait_for_function(
        "before => document.querySelector('[data-curve=train_loss] output').textContent !== before",
        arg=before,
    )
    assert "7.250" in drawn.inner_text()
    with site.sessions.begin() as session:
        cancel(session, lock_job(session, job_id))
    page.get_by_role("main").get_by_text("Cancelled", exact=True).wait_for(timeout=8000)
    assert page.locator("[data-live]").count() == 0
    assert page.get_by_text("Cancel job…").count() == 0
    assert complaints == []


def test_finds_a_job_by_its_tenant_and_its_name(page: Page, complaints: list[str]) -> None:
    page.get_by_label("Tenant").fill("Harbour Legal")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**tenant=Harbour+Legal**")
    assert page.get_by_role("row").count() == 4
    page.get_by_label("Job or model").fill("ft:sandbox-base:harbour:long")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**search=ft**")
    assert page.get_by_role("row").count() == 2
    # What is being typed survives the page's own renewal.
    page.get_by_label("Made from").fill("sandbox-b")
    page.wait_for_timeout(4000)
    assert page.get_by_label("Made from").input_value() == "sandbox-b"
    page.get_by_role("link", name="Clear").click()
    page.wait_for_url("**/dashboard/jobs")
    assert page.get_by_role("row").count() == 12
    assert complaints == []


def test_pauses_a_job_and_goes_on(page: Page, site: Site, complaints: list[str]) -> None:
    page.goto("/dashboard/jobs?status=queued")
    page.get_by_role("rowheader").get_by_role("link").click()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("main").get_by_text("Paused", exact=True).wait_for()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("main").get_by_text("Queued", exact=True).wait_for()
    assert complaints == []


def test_shows_answers_when_asked(
    page: Page, site: Site, storage: Storage, complaints: list[str]
) -> None:
    secret = "turn the blue lever twice"
    with site.sessions.begin() as session:
        evaluation = session.scalars(
            select(Evaluation).where(Evaluation.version_id == BLOCKED)
        ).one()
        key = keep_answers(storage, [make_answer(answer=secret)])
        evaluation.report = {**evaluation.report, "answers_sha256": key}
    page.goto(f"/dashboard/jobs/{site.job_id(BLOCKED)}")
    page.get_by_role("link", name="The answers, one by one").click()
    page.get_by_role("cell", name="Refused").wait_for()
    assert page.get_by_text(secret).count() == 0
    page.get_by_role("button", name="Show the texts").click()
    page.get_by_text(secret).wait_for()
    page.get_by_text("The audit log now says that you read these answers.").wait_for()
    assert complaints == []


def test_half_written_reason_survives_and_releases(
    page: Page, site: Site, complaints: list[str]
) -> None:
    page.get_by_role("link", name=f"Review {HELD}").click()
    page.get_by_label("Reason").fill("Read all 27 flagged answers: product names.")
    with page.expect_response(
        lambda response: response.request.headers.get("hx-request") == "true"
    ):
        pass
    page.wait_for_timeout(300)
    assert page.get_by_label("Reason").input_value().startswith("Read all 27")
    page.get_by_role("button", name="Release").click()
    page.get_by_role("main").get_by_text("Succeeded", exact=True).wait_for()
    assert page.locator("#log").locator("xpath=../..").get_by_text("Read all 27").count() == 1
    assert complaints == []


def test_overview_follows_what_happens_and_leaves_open_what_is_open(
    page: Page, site: Site, complaints: list[str]
) -> None:
    page.goto("/dashboard/overview")
    page.get_by_text("The numbers").click()
    row = page.get_by_role("row", name="80–85% 0 0 1")
    row.wait_for()
    tile = page.locator(".tiles > div").filter(has_text="Cancelled")
    assert tile.get_by_role("link").inner_text() == "1"
    with site.sessions.begin() as session:
        cancel(session, lock_job(session, site.job_id(RUNNING)))
    tile.get_by_role("link", name="2").wait_for(timeout=8000)
    assert row.is_visible()
    # Bars of three verdicts, told apart by their patterns: each of them is painted.
    for gate in ("released", "held", "blocked"):
        bar = page.locator(f'.segment[fill="url(#fill-{gate})"]').first
        box = bar.bounding_box()
        assert box, gate
        assert min(box["width"], box["height"]) > 4, gate
    assert complaints == []


def test_system_tells_that_the_parts_of_this_site_are_well(
    page: Page, complaints: list[str]
) -> None:
    page.goto("/dashboard/system")
    parts = page.locator(".parts li")
    for name in ("Database", "Redis", "Queue", "Storage", "Migrations"):
        assert "Well" in parts.filter(has_text=name).first.inner_text(), name
    assert complaints == []


def test_is_told_of_changes_and_does_not_ask_by_the_clock(
    page: Page, site: Site, complaints: list[str]
) -> None:
    # The page's own clock stands still: whatever moves it now is what it is told.
    page.add_init_script("window.setInterval = () => 0")
    asked: list[str] = []
    page.on(
        "request",
        lambda request: asked.append(request.url) if "hx-request" in request.headers else None,
    )
    job_id = site.job_id(RUNNING)
    with page.expect_request(re.compile(rf"/dashboard/live\?job={job_id}$")):
        page.goto(f"/dashboard/jobs/{job_id}")
    page.wait_for_timeout(1500)
    asked.clear()
    site.tell(HELD)
    page.wait_for_timeout(1500)
    assert asked == []
    site.tell(RUNNING, "Told to the page")
    page.get_by_text("Told to the page").wait_for()
    page.goto("/dashboard/jobs")
    page.wait_for_timeout(1500)
    asked.clear()
    with page.expect_request(lambda request: "hx-request" in request.headers):
        for _ in range(5):
            site.tell(HELD)
    page.wait_for_timeout(2500)
    assert len(asked) <= 3
    assert complaints == []


def test_asks_by_the_clock_while_it_is_told_nothing(page: Page, site: Site) -> None:
    page.route("**/dashboard/live*", lambda route: route.abort())
    page.goto(f"/dashboard/jobs/{site.job_id(RUNNING)}")
    page.wait_for_timeout(500)
    site.tell(RUNNING, "Found by asking")
    page.get_by_text("Found by asking").wait_for(timeout=8000)


def test_a_hidden_page_holds_no_stream(page: Page, site: Site) -> None:
    hide = """is_hidden => {
      Object.defineProperty(document, "hidden", { configurable: true, value: is_hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    wait_until(lambda: site.service.open_streams == 1)
    page.evaluate(hide, True)
    wait_until(lambda: site.service.open_streams == 0)
    with page.expect_response(lambda response: "hx-request" in response.request.headers):
        page.evaluate(hide, False)
    wait_until(lambda: site.service.open_streams == 1)


def test_outlives_a_restart_of_the_service(page: Page, site: Site) -> None:
    banner = page.locator("[data-offline]")
    wait_until(lambda: site.service.open_streams == 1)
    site.service.stop()
    banner.wait_for(state="visible", timeout=8000)
    site.service.start()
    banner.wait_for(state="hidden", timeout=8000)
    wait_until(lambda: site.service.open_streams == 1)


def test_says_when_it_is_not_up_to_date(page: Page, site: Site) -> None:
    banner = page.locator("[data-offline]")
    assert not banner.is_visible()
    page.route("**/dashboard/jobs", lambda route: route.fulfill(status=503, body="gone"))
    site.tell(RUNNING)
    banner.wait_for(state="visible", timeout=8000)
    assert page.get_by_role("heading", name="Jobs").is_visible()
    page.unroute("**/dashboard/jobs")
    site.tell(RUNNING)
    banner.wait_for(state="hidden", timeout=8000)


def test_revoked_key_is_led_to_the_door(page: Page, site: Site) -> None:
    with site.sessions.begin() as session:
        session.merge(site.provider.operator).revoked_at = site.provider.operator.created_at
    site.tell(RUNNING)
    page.wait_for_url("**/dashboard/login?**", timeout=8000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_no_page_is_wider_than_the_screen(
    page: Page, site: Site, width: int, scheme: str, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    addresses = [
        "overview",
        "jobs",
        "models",
        "system",
        *(f"jobs/{site.job_id(m)}" for m in (HELD, RUNNING, BLOCKED)),
    ]
    for address in addresses:
        page.goto(f"/dashboard/{address}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
