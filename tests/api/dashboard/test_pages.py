"""What the pages show, to whom, and that nothing in them can run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from api.dashboard.jobs import job_list
from api.seed.month import seed_canary_alarm
from api.seed.states import HOSTILE_NAME, Provider, seed_all, seed_job
from models.base import utc_now
from models.data_risk import DataReview
from models.job import Job, JobEvent, JobStatus, Stage, await_review
from models.model_version import Gate, ModelVersion
from models.tuning import AppliedProtection, LoxConfig, TuningProtection
from tests.api.dashboard.conftest import SignIn, csrf, seed_held_models
from tests.models.factories import make_screening

ACME_MODEL = "ft:sandbox-base:acme:tickets:R4kd92Lm"
BLOCKED_MODEL = "ft:sandbox-base:acme:tickets:P0qs77Ab"
HELD_MODEL = "ft:sandbox-base:acme:tone:Hc81Zx0p"
OTHER_MODEL = "ft:sandbox-base:harbour:clauses:9hTq2Vde"
DASH = "\N{EN DASH}"
RUNNING_MODEL = "ft:sandbox-base:acme:faq-de:Wm3v0TzK"


@pytest.fixture(scope="module")
def seeded(engine: Engine) -> Iterator[tuple[Connection, Provider]]:
    """A full database, filled once for all tests here: each of them undoes only its own part."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            # Few points: most tests look at what stands beside the curves.
            provider = seed_all(session, points=10)
            session.commit()
        yield connection, provider
        outer.rollback()


@pytest.fixture
def session(seeded: tuple[Connection, Provider]) -> Iterator[Session]:
    connection, _ = seeded
    before = connection.begin_nested()
    with Session(
        connection, join_transaction_mode="create_savepoint", expire_on_commit=False
    ) as session:
        yield session
    before.rollback()


@pytest.fixture
def provider(app: FastAPI, seeded: tuple[Connection, Provider]) -> Provider:
    return seeded[1]


@pytest.fixture
def operator_page(provider: Provider, sign_in: SignIn) -> TestClient:
    return sign_in(provider.operator_token)


@pytest.fixture
def customer_page(provider: Provider, sign_in: SignIn) -> TestClient:
    return sign_in(provider.customer_token)


def job_of(session: Session, model: str) -> Job:
    return session.scalars(
        select(Job).where(Job.result_model_id == model).execution_options(populate_existing=True)
    ).one()


def page_of(client: TestClient, session: Session, model: str) -> str:
    answer = client.get(f"/dashboard/jobs/{job_of(session, model).id}")
    assert answer.status_code == 200, answer.text
    return answer.text


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


class TestEveryPage:
    @pytest.fixture
    def pages(self, operator_page: TestClient, session: Session) -> dict[str, str]:
        addresses = [
            "/dashboard/login",
            "/dashboard/jobs",
            "/dashboard/models",
            "/dashboard/nowhere",
        ]
        addresses += [f"/dashboard/jobs/{job}" for job in session.scalars(select(Job.id))]
        return {address: operator_page.get(address).text for address in addresses}

    def test_runs_nothing_inline_and_loads_nothing_from_elsewhere(
        self, pages: dict[str, str]
    ) -> None:
        for address, html in pages.items():
            assert not re.search(r"<script(?![^>]*\ssrc=)", html), address
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html), address
            assert not re.search(r"(?:src|href|action)=\"(?!/dashboard/|#)", html), address

    def test_escapes_what_others_named(self, pages: dict[str, str]) -> None:
        assert not any(HOSTILE_NAME in html for html in pages.values())
        assert "&lt;script&gt;" in pages["/dashboard/jobs"]

    def test_has_landmarks_a_title_and_unique_ids(self, pages: dict[str, str]) -> None:
        for address, html in pages.items():
            assert html.count("<h1") == 1, address
            assert re.search(r"<title>[^<]+ · Titer</title>", html), address
            assert '<main id="main"' in html
            ids = re.findall(r'\sid="([^"]+)"', html)
            assert len(ids) == len(set(ids)), address

    def test_carries_the_security_headers_and_is_not_cached(
        self, operator_page: TestClient
    ) -> None:
        for address in ("/dashboard/jobs", "/dashboard/login", "/dashboard/nowhere"):
            headers = operator_page.get(address).headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'self';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"

    def test_outage_of_the_database_is_a_sentence(
        self, app: FastAPI, operator_page: TestClient
    ) -> None:
        engine = create_engine("postgresql+psycopg://titer@127.0.0.1:1/none")
        app.state.sessions = sessionmaker(engine)
        answer = operator_page.get("/dashboard/jobs")
        assert answer.status_code == 503
        assert "The database does not answer" in answer.text
        assert "psycopg" not in answer.text

    def test_unknown_address_is_a_page_not_an_envelope(self, operator_page: TestClient) -> None:
        answer = operator_page.get("/dashboard/nowhere")
        assert answer.status_code == 404
        assert "There is no such page." in answer.text


class TestJobList:
    def test_operator_sees_every_project(self, operator_page: TestClient) -> None:
        html = operator_page.get("/dashboard/jobs").text
        assert ACME_MODEL in html
        assert OTHER_MODEL in html
        assert "Harbour Legal" in html

    def test_customer_sees_only_its_own(self, customer_page: TestClient) -> None:
        html = customer_page.get("/dashboard/jobs").text
        assert ACME_MODEL in html
        assert "harbour" not in html
        assert "Northwind" not in html
        assert len(re.findall(r'id="row-', html)) == 6
        assert re.search(r"Running <span class=\"count\">2</span>", html)

    def test_held_models_come_first(self, operator_page: TestClient) -> None:
        html = operator_page.get("/dashboard/jobs").text
        assert (
            html.index("Waiting for your decision") < html.index(HELD_MODEL) < html.index("<table")
        )

    def test_of_many_held_the_first_are_shown_and_all_are_counted(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        seed_held_models(session, provider.other, count=job_list.MAX_HELD_SHOWN)
        html = operator_page.get("/dashboard/jobs").text
        held = html.split('aria-labelledby="held"')[1].split("</section>")[0]
        assert f'<span class="count">{job_list.MAX_HELD_SHOWN + 1}</span>' in held
        assert held.count("<li>") == job_list.MAX_HELD_SHOWN
        assert f"All {job_list.MAX_HELD_SHOWN + 1} in the review queue" in held

    def test_a_customer_with_many_held_is_told_how_many_more(
        self, customer_page: TestClient, provider: Provider, session: Session
    ) -> None:
        seed_held_models(session, provider.customer.project, count=job_list.MAX_HELD_SHOWN + 1)
        html = customer_page.get("/dashboard/jobs").text
        assert "And 2 more." in html
        assert "/dashboard/reviews" not in html

    def test_score_is_shown_with_its_interval_and_the_limit(
        self, operator_page: TestClient
    ) -> None:
        html = operator_page.get("/dashboard/jobs").text
        assert f'aria-label="84.5%, 95% interval 78.8{DASH}88.9, limit 15%"' in html

    @pytest.mark.parametrize(
        ("query", "present", "absent"),
        [
            ("status=succeeded", ACME_MODEL, BLOCKED_MODEL),
            ("status=failed", BLOCKED_MODEL, ACME_MODEL),
            ("gate=blocked", BLOCKED_MODEL, ACME_MODEL),
            ("gate=released&status=succeeded", ACME_MODEL, BLOCKED_MODEL),
            ("kind=finetune", ACME_MODEL, "sandbox-sft</a>"),
            ("kind=align", "sandbox-sft</a>", BLOCKED_MODEL),
            ("tenant=Acme+Support", BLOCKED_MODEL, OTHER_MODEL),
            ("base=sandbox-sft", BLOCKED_MODEL, ACME_MODEL),
            ("search=ft:sandbox-base:acme:tickets:R4", ACME_MODEL, BLOCKED_MODEL),
            ("since=2001-01-01", ACME_MODEL, "No job matches"),
            ("until=2001-01-01&status=", "No job matches", ACME_MODEL),
        ],
    )
    def test_filters(
        self, operator_page: TestClient, query: str, present: str, absent: str
    ) -> None:
        html = operator_page.get(f"/dashboard/jobs?{query}").text
        assert present in html
        assert absent not in html

    def test_says_so_when_nothing_matches(self, operator_page: TestClient) -> None:
        html = operator_page.get("/dashboard/jobs?status=cancelled&gate=blocked").text
        assert "No job matches these filters." in html

    def test_a_job_is_found_by_its_id(self, operator_page: TestClient, session: Session) -> None:
        job = job_of(session, BLOCKED_MODEL)
        html = operator_page.get(f"/dashboard/jobs?search={job.id}").text
        assert re.findall(r'id="row-([^"]+)"', html) == [job.id]

    def test_a_job_is_found_by_how_its_suffix_begins(
        self, operator_page: TestClient, session: Session
    ) -> None:
        job = job_of(session, BLOCKED_MODEL)
        job.suffix = "tickets-de"
        session.commit()
        html = operator_page.get("/dashboard/jobs?search=tickets").text
        assert re.findall(r'id="row-([^"]+)"', html) == [job.id]

    def test_the_marks_of_a_search_mean_themselves(self, operator_page: TestClient) -> None:
        assert "No job matches" in operator_page.get("/dashboard/jobs?search=%25").text

    def test_a_customer_cannot_ask_for_another_tenant(self, customer_page: TestClient) -> None:
        html = customer_page.get("/dashboard/jobs?tenant=Harbour+Legal").text
        assert ACME_MODEL in html
        assert OTHER_MODEL not in html

    @pytest.mark.parametrize(
        "query",
        [
            "status=gone",
            "gate=ajar",
            "kind=odd",
            "since=yesterday",
            "until=9999-12-31",
            "search=%00",
            f"search={'x' * 300}",
        ],
    )
    def test_unknown_filter_is_refused(self, operator_page: TestClient, query: str) -> None:
        assert operator_page.get(f"/dashboard/jobs?{query}").status_code == 400

    def test_pages_by_key_without_gap_or_repeat(
        self,
        operator_page: TestClient,
        provider: Provider,
        session: Session,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(job_list, "PAGE_SIZE", 4)
        # Several jobs of one moment, so that time alone does not order them.
        moment = utc_now() - timedelta(days=9)
        for number in range(5):
            seed_job(
                session,
                provider.other,
                name=f"ft:same-moment-{number}",
                model="sandbox-booster",
                status=JobStatus.QUEUED,
            ).created_at = moment
        session.commit()
        seen: list[str] = []
        address: str | None = "/dashboard/jobs"
        while address:
            html = operator_page.get(address).text
            seen += re.findall(r'id="row-([^"]+)"', html)
            older = re.search(r'href="([^"]+)">Older', html)
            address = older[1].replace("&amp;", "&") if older else None
        assert len(seen) == len(set(seen)) == len(session.scalars(select(Job.id)).all())

    def test_cannot_page_from_another_projects_job(
        self, customer_page: TestClient, session: Session
    ) -> None:
        before = job_of(session, OTHER_MODEL).id
        assert customer_page.get(f"/dashboard/jobs?before={before}").status_code == 404

    def test_live_part_is_the_part_alone(self, operator_page: TestClient) -> None:
        html = operator_page.get("/dashboard/jobs", headers={"HX-Request": "true"}).text
        assert html.lstrip().startswith('<div id="jobs" data-live hx-get="/dashboard/jobs"')
        assert "<html" not in html

    def test_costs_the_same_queries_however_long(
        self, operator_page: TestClient, provider: Provider, session: Session, statements: list[str]
    ) -> None:
        operator_page.get("/dashboard/jobs")
        before = len(statements)
        statements.clear()
        for number in range(10):
            seed_job(
                session,
                provider.other,
                name=f"ft:many-{number}",
                model="sandbox-booster",
                status=JobStatus.QUEUED,
            )
        session.commit()
        statements.clear()
        operator_page.get("/dashboard/jobs")
        assert len(statements) == before


class TestJobPage:
    def test_shows_stages_evidence_gate_and_lineage(
        self, operator_page: TestClient, session: Session
    ) -> None:
        text = text_of(page_of(operator_page, session, ACME_MODEL))
        assert re.search(r"Harmful score .*? 6\.0% 3\.5.10\.2 within 15% 12/200", text)
        assert re.search(r"Harmful score before .*? 1\.5% 0\.5.4\.3", text)
        assert "Fine-tuning accuracy (FA)" in text
        assert "it is within the limit of 15%." in text
        assert re.search(r"Lineage sandbox-base base sandbox-booster aligned · booster", text)
        assert re.search(r"Review not needed", text)
        assert "support-tickets.jsonl" in text

    def test_other_judges_kinds_of_prompts_and_warnings_stand_beside_the_score(
        self, operator_page: TestClient, session: Session
    ) -> None:
        text = text_of(page_of(operator_page, session, HELD_MODEL))
        assert "2 rows of the training file ask what a test prompt asks." in text
        assert re.search(
            r"Harmful score by refusal-strings .*?agree on 92\.0%, kappa 0\.71 20\.5%", text
        )
        assert re.search(r"Over-refusal by kind of prompt .*?homonyms 4\.0%", text)

    def test_blocked_job_says_why_and_what_to_do(
        self, customer_page: TestClient, session: Session
    ) -> None:
        html = page_of(customer_page, session, BLOCKED_MODEL)
        assert "Remove harmful rows" in html
        assert "above 15%" in text_of(html)
        assert "data-live" not in html.split("<main")[1]
        assert "/cancel" not in html

    def test_running_job_is_live_and_shows_its_progress(
        self, operator_page: TestClient, session: Session
    ) -> None:
        html = page_of(operator_page, session, RUNNING_MODEL)
        assert "data-live hx-get=" in html
        assert re.search(r'aria-current="step".*?Train.*?172 of 300', html, re.DOTALL)

    def test_says_in_one_line_how_a_job_is_protected(
        self, operator_page: TestClient, session: Session
    ) -> None:
        tuning = TuningProtection(safety_share=0.05, repair=LoxConfig())
        running, done = job_of(session, RUNNING_MODEL), session.get_one(ModelVersion, ACME_MODEL)
        running.recipe = {**running.recipe, "tuning": tuning.model_dump(mode="json")}
        applied = AppliedProtection(tuning=tuning, safety_rows=50)
        done.recipe = {**done.recipe, "protection": applied.model_dump(mode="json")}
        session.commit()
        asked = text_of(page_of(operator_page, session, RUNNING_MODEL))
        assert "Protection 5% safety rows; repair by lox" in asked
        happened = text_of(page_of(operator_page, session, ACME_MODEL))
        assert "Protection 5% safety rows (50); repair by lox" in happened
        assert "Protection" not in text_of(page_of(operator_page, session, BLOCKED_MODEL))

    def test_another_projects_job_does_not_exist(
        self, customer_page: TestClient, session: Session
    ) -> None:
        job = job_of(session, OTHER_MODEL).id
        for address in (f"/dashboard/jobs/{job}", f"/dashboard/jobs/{job}/curves.json"):
            assert customer_page.get(address).status_code == 404
        token = csrf(customer_page.get("/dashboard/jobs"))
        for action in ("cancel", "review"):
            form = {"csrf": token, "decision": "release", "reason": "mine"}
            answer = customer_page.post(f"/dashboard/jobs/{job}/{action}", data=form)
            assert answer.status_code in {403, 404}
        assert job_of(session, OTHER_MODEL).status == JobStatus.RUNNING

    def test_metrics_are_curves_not_log_lines(
        self, operator_page: TestClient, session: Session
    ) -> None:
        html = page_of(operator_page, session, ACME_MODEL)
        assert "Job started." in html
        assert "training loss=" not in html


class TestCurves:
    def test_are_columns_of_one_length_in_order(
        self, operator_page: TestClient, session: Session
    ) -> None:
        job = job_of(session, RUNNING_MODEL)
        curves = operator_page.get(f"/dashboard/jobs/{job.id}/curves.json").json()
        steps = curves["steps"]
        assert steps == sorted(steps)
        assert {len(curves[name]) for name in ("train_loss", "token_accuracy", "canary_loss")} == {
            len(steps)
        }
        assert curves["total_steps"] == 300
        assert max(share for share in curves["token_accuracy"] if share is not None) > 50
        # The score of the model that training starts from stands at step 0, with its interval.
        assert (steps[0], curves["train_loss"][0]) == (0, None)
        low, score, high = (
            curves[name][0] for name in ("harmful_score_low", "harmful_score", "harmful_score_high")
        )
        assert low < score < high
        assert None in curves["canary_loss"]

    def test_the_score_of_a_model_stands_where_its_training_ended(
        self, operator_page: TestClient, session: Session, provider: Provider
    ) -> None:
        ended = seed_canary_alarm(session, provider.other, "ft:sandbox-base:x", minutes_ago=9)
        session.commit()
        for model, end in ((ACME_MODEL, 300), (ended.id, 112)):
            job = job_of(session, model)
            curves = operator_page.get(f"/dashboard/jobs/{job.id}/curves.json").json()
            assert curves["steps"][-1] == end
            assert curves["harmful_score"][-1] is not None
            assert curves["train_loss"][-1] is not None
            assert curves["total_steps"] == 300

    def test_step_told_twice_counts_once_and_the_later_stands(
        self, operator_page: TestClient, session: Session
    ) -> None:
        job = job_of(session, RUNNING_MODEL)
        before = operator_page.get(f"/dashboard/jobs/{job.id}/curves.json").json()
        step = before["steps"][-1]
        job.event_count += 1
        data = {"stage": Stage.TRAIN, "step": step, "total_steps": 300, "train_loss": 9.5}
        session.add(
            JobEvent(
                job_id=job.id, sequence=job.event_count, type="metrics", message="again", data=data
            )
        )
        session.commit()
        after = operator_page.get(f"/dashboard/jobs/{job.id}/curves.json").json()
        assert after["steps"] == before["steps"]
        assert after["train_loss"][-1] == 9.5


class TestCancel:
    def test_ends_the_job(self, customer_page: TestClient, session: Session) -> None:
        job = job_of(session, RUNNING_MODEL)
        form = {"csrf": csrf(customer_page.get(f"/dashboard/jobs/{job.id}"))}
        answer = customer_page.post(f"/dashboard/jobs/{job.id}/cancel", data=form)
        assert answer.status_code == 303
        assert job_of(session, RUNNING_MODEL).status == JobStatus.CANCELLED

    def test_of_a_finished_job_is_a_conflict(
        self, customer_page: TestClient, session: Session
    ) -> None:
        job = job_of(session, ACME_MODEL)
        form = {"csrf": csrf(customer_page.get("/dashboard/jobs"))}
        answer = customer_page.post(f"/dashboard/jobs/{job.id}/cancel", data=form)
        assert answer.status_code == 409
        assert "cannot become cancelled" in answer.text

    def test_needs_the_form_token(self, customer_page: TestClient, session: Session) -> None:
        job = job_of(session, RUNNING_MODEL)
        answer = customer_page.post(f"/dashboard/jobs/{job.id}/cancel", data={"csrf": "guess"})
        assert answer.status_code == 403
        assert job_of(session, RUNNING_MODEL).status == JobStatus.RUNNING


class TestReview:
    def decide(
        self, client: TestClient, session: Session, decision: str, reason: str = "Read 40 answers."
    ) -> int:
        job = job_of(session, HELD_MODEL)
        form = {"csrf": csrf(client.get("/dashboard/jobs")), "decision": decision, "reason": reason}
        return client.post(f"/dashboard/jobs/{job.id}/review", data=form).status_code

    @pytest.mark.parametrize(
        ("decision", "status", "gate"),
        [
            ("release", JobStatus.SUCCEEDED, Gate.RELEASED),
            ("reject", JobStatus.FAILED, Gate.BLOCKED),
        ],
    )
    def test_operator_decides_with_a_reason_that_is_kept(
        self,
        operator_page: TestClient,
        session: Session,
        decision: str,
        status: JobStatus,
        gate: Gate,
    ) -> None:
        assert self.decide(operator_page, session, decision) == 303
        assert job_of(session, HELD_MODEL).status == status
        version = session.get_one(ModelVersion, HELD_MODEL, populate_existing=True)
        assert version.gate == gate
        assert "Read 40 answers." in page_of(operator_page, session, HELD_MODEL)

    def test_customer_sees_it_held_but_cannot_decide(
        self, customer_page: TestClient, session: Session
    ) -> None:
        html = page_of(customer_page, session, HELD_MODEL)
        assert "Awaits review" in html
        assert "/review" not in html
        assert self.decide(customer_page, session, "release") == 403
        assert job_of(session, HELD_MODEL).awaits_review

    @pytest.mark.parametrize(
        ("decision", "reason"), [("release", ""), ("shrug", "because"), ("release", "x" * 1001)]
    )
    def test_faulty_decision_is_refused(
        self, operator_page: TestClient, session: Session, decision: str, reason: str
    ) -> None:
        assert self.decide(operator_page, session, decision, reason) == 400
        assert job_of(session, HELD_MODEL).awaits_review

    def test_second_decision_is_a_conflict(
        self, operator_page: TestClient, session: Session
    ) -> None:
        assert self.decide(operator_page, session, "reject") == 303
        assert self.decide(operator_page, session, "release") == 409


class TestHeldData:
    @pytest.fixture
    def job(self, session: Session, provider: Provider) -> Job:
        """A job that waits for a person before it is trained."""
        job = job_of(session, RUNNING_MODEL)
        await_review(job, hours=1, stage=Stage.DATA_REVIEW)
        make_screening(session, job).review = DataReview.WAITING
        session.commit()
        return job

    def test_is_listed_and_can_be_released_with_a_reason(
        self, operator_page: TestClient, session: Session, job: Job
    ) -> None:
        listed = operator_page.get("/dashboard/jobs")
        assert "Its training data is held." in listed.text
        html = operator_page.get(f"/dashboard/jobs/{job.id}").text
        assert "2 of 12 training rows were flagged" in html
        assert html.count(f'action="/dashboard/jobs/{job.id}/review"') == 1
        form = {"csrf": csrf(listed), "decision": "release", "reason": "Read all twelve."}
        answer = operator_page.post(f"/dashboard/jobs/{job.id}/review", data=form)
        assert answer.status_code == 303
        session.expire_all()
        assert job.status == JobStatus.QUEUED
        assert "Read all twelve." in operator_page.get(f"/dashboard/jobs/{job.id}").text

    def test_customer_sees_it_but_cannot_decide(self, customer_page: TestClient, job: Job) -> None:
        html = customer_page.get(f"/dashboard/jobs/{job.id}").text
        assert "2 of 12 training rows were flagged" in html
        assert "/review" not in html
