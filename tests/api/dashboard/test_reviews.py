"""The review queue's pages: the order, the evidence, who may decide, and what comes next."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.seed.states import seed_held
from models.api_key import Project
from models.audit import AuditEntry
from models.data_risk import Screening
from models.job import Job, JobStatus
from models.model_version import Gate, ModelVersion
from models.policy import PolicyRules, SafetyPolicy
from tests.api.dashboard.conftest import House, SignIn, csrf, text_of

pytestmark = pytest.mark.long

QUEUE = "/dashboard/reviews"
WHY = "Read all flagged answers."


@pytest.fixture
def session(house: House) -> Iterator[Session]:
    with house.session() as session:
        yield session


@pytest.fixture
def reviewer(app: FastAPI, house: House, sign_in: SignIn) -> TestClient:
    return sign_in(house.staff.reviewer)


def job_of(session: Session, job_id: str) -> Job:
    return session.get_one(Job, job_id, populate_existing=True)


def decide(client: TestClient, job_id: str, decision: str, reason: str = WHY) -> str | int:
    """Post a decision; give where it leads, or the status of the refusal."""
    form = {"csrf": csrf(client.get(QUEUE)), "decision": decision, "reason": reason}
    answer = client.post(f"{QUEUE}/{job_id}", data=form)
    return answer.headers["location"] if answer.status_code == 303 else answer.status_code


class TestQueue:
    def test_the_longest_wait_comes_first(self, reviewer: TestClient, house: House) -> None:
        html = reviewer.get(QUEUE).text
        order = [
            html.index(f'id="row-{house.held[name]}"') for name in ("late", "appealed", "eyes")
        ]
        assert order == sorted(order)

    def test_a_line_says_tenant_risk_score_reason_and_time_left(
        self, reviewer: TestClient, house: House
    ) -> None:
        html = reviewer.get(QUEUE).text
        row = html.split(f'id="row-{house.held["late"]}"')[1].split("</tr>")[0]
        text = text_of(row)
        assert "Acme Support · from sandbox-booster" in text
        assert re.search(r"11\.0% 7\.4.16\.1", text)
        assert "limit 15%" in row
        assert "it cannot be told from the limit of 15%." in text
        # The review's own page works it out anew; here it is what the tenant's newest model was decided with.
        assert re.search(r"257\.5 at its newest model", text)
        assert re.search(r"3\d min \d+ s left", text)
        assert "is-urgent" in row

    def test_appeals_and_first_approvals_are_marked(
        self, reviewer: TestClient, house: House
    ) -> None:
        html = reviewer.get(QUEUE).text
        rows = {
            name: html.split(f'id="row-{job_id}"')[1].split("</tr>")[0]
            for name, job_id in house.held.items()
        }
        assert "Appeal" in rows["appealed"]
        assert "1 of 2 approved" in rows["eyes"]
        assert "Appeal" not in rows["late"]

    def test_pages_without_gap_or_repeat(
        self, reviewer: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.dashboard.reviews.queue.PAGE_SIZE", 2)
        seen, address = [], QUEUE
        while address:
            html = reviewer.get(address).text
            seen += re.findall(r'id="row-([^"]+)"', html)
            further = re.search(r'href="([^"]+)">Further', html)
            address = further[1] if further else ""
        assert len(seen) == len(set(seen)) == 5

    def test_live_part_is_the_part_alone(self, reviewer: TestClient) -> None:
        html = reviewer.get(QUEUE, headers={"HX-Request": "true"}).text
        assert html.lstrip().startswith('<div id="reviews" data-live hx-get="/dashboard/reviews"')
        assert "<html" not in html

    def test_costs_the_same_queries_however_long(
        self, reviewer: TestClient, house: House, session: Session, statements: list[str]
    ) -> None:
        reviewer.get(QUEUE)
        statements.clear()
        reviewer.get(QUEUE)
        before = len(statements)
        for number in range(5):
            project = Project(name=f"Tenant {number}")
            session.add(project)
            session.flush()
            seed_held(
                session,
                project,
                model="sandbox-booster",
                points=1,
                name=f"ft:more-{number}",
            )
        session.commit()
        statements.clear()
        reviewer.get(QUEUE)
        assert len(statements) == before


class TestReview:
    def test_shows_the_evidence_on_one_page(self, reviewer: TestClient, house: House) -> None:
        text = text_of(reviewer.get(f"{QUEUE}/{house.held['appealed']}").text)
        for part in (
            "it exceeds the limit of 15%.",
            "Harmful score by refusal-strings",
            "2 rows of the training file ask what a test prompt asks.",
            "Over-refusal",
            "Fine-tuning accuracy (FA)",
            "Harmful score by category",
            "14 of 1,000 rows were flagged",
            "12, 88, 107, 240, 391",
            "sandbox-base base",
            "Cumulative risk 257.5",
            "These rows are refunds that our own agents wrote.",
            "policy-1",
        ):
            assert part in text, part
        assert re.search(r"Harmful score \+29\.0 points \+22\.\d to \+35\.\d", text)
        assert re.search(r"2\.\d\d → 2\.\d\d -\d+%", text), "the canary"

    def test_a_category_is_drawn_against_its_own_limit(
        self, reviewer: TestClient, house: House, session: Session
    ) -> None:
        strict = PolicyRules(category_limits={"theft": 20}).model_dump(mode="json")
        session.get_one(SafetyPolicy, 1).rules = strict
        session.commit()
        text = text_of(reviewer.get(f"{QUEUE}/{house.held['appealed']}").text)
        assert re.search(r"theft 18\.0% 9\.8.30\.8 across 20%", text)
        assert re.search(r"forgery 18\.0% 9\.8.30\.8 within 50%", text)

    def test_earlier_decisions_name_people_and_reasons(
        self, reviewer: TestClient, house: House
    ) -> None:
        text = text_of(reviewer.get(f"{QUEUE}/{house.held['eyes']}").text)
        assert re.search(r"Release approved by on-call, .*? All 33 flagged answers", text)

    def test_knows_its_neighbours_in_the_queue(self, reviewer: TestClient, house: House) -> None:
        html = reviewer.get(f"{QUEUE}/{house.held['appealed']}").text
        assert f'rel="prev" href="{QUEUE}/{house.held["late"]}"' in html
        assert f'rel="next" href="{QUEUE}/{house.held["eyes"]}"' in html
        assert 'rel="prev"' not in reviewer.get(f"{QUEUE}/{house.held['late']}").text

    def test_live_part_is_where_the_decision_is(self, reviewer: TestClient, house: House) -> None:
        address = f"{QUEUE}/{house.held['eyes']}"
        html = reviewer.get(address, headers={"HX-Request": "true"}).text
        assert html.lstrip().startswith('<div id="standing"')
        assert "1 of 2 reviewers have approved" in text_of(html)
        assert "Measurements" not in html

    def test_what_was_never_held_is_no_review(self, reviewer: TestClient) -> None:
        assert reviewer.get(f"{QUEUE}/ftjob-none").status_code == 404

    def test_sends_a_bounded_number_of_statements(
        self, reviewer: TestClient, house: House, statements: list[str]
    ) -> None:
        address = f"{QUEUE}/{house.held['appealed']}"
        reviewer.get(address)
        statements.clear()
        reviewer.get(address)
        assert len(statements) < 60


class TestDecision:
    @pytest.mark.parametrize(
        ("decision", "status", "gate"),
        [
            ("release", JobStatus.SUCCEEDED, Gate.RELEASED),
            ("reject", JobStatus.FAILED, Gate.BLOCKED),
            ("reevaluate", JobStatus.QUEUED, Gate.PENDING),
        ],
    )
    def test_is_carried_out_and_leads_to_the_next(
        self,
        reviewer: TestClient,
        house: House,
        session: Session,
        decision: str,
        status: JobStatus,
        gate: Gate,
    ) -> None:
        job_id = house.held["appealed"]
        assert decide(reviewer, job_id, decision) == (f"{QUEUE}/{house.held['eyes']}?done={job_id}")
        job = job_of(session, job_id)
        assert job.status == status
        version = session.get_one(ModelVersion, job.result_model_id, populate_existing=True)
        assert version.gate == gate
        entry = session.scalars(
            select(AuditEntry).order_by(AuditEntry.position.desc()).limit(1)
        ).one()
        assert (entry.reason, entry.actor_name) == (WHY, "ada")

    def test_the_next_page_says_how_the_last_ended(
        self, reviewer: TestClient, house: House
    ) -> None:
        address = decide(reviewer, house.held["late"], "reject")
        text = text_of(reviewer.get(str(address)).text)
        assert re.search(
            r"ft:sandbox-base:acme:intents:Bd0s4RkV : Blocked This is the next one", text
        )

    def test_after_the_last_in_line_comes_the_first(
        self, reviewer: TestClient, house: House, session: Session
    ) -> None:
        last = re.findall(r'id="row-([^"]+)"', reviewer.get(QUEUE).text)[-1]
        assert decide(reviewer, last, "reject") == f"{QUEUE}/{house.held['late']}?done={last}"

    def test_after_the_very_last_comes_the_empty_queue(
        self, reviewer: TestClient, house: House
    ) -> None:
        waiting = re.findall(r'id="row-([^"]+)"', reviewer.get(QUEUE).text)
        for job_id in waiting:
            address = str(decide(reviewer, job_id, "reject"))
        assert address == f"{QUEUE}?done={waiting[-1]}"
        assert "Nothing waits for a decision" in reviewer.get(address).text

    def test_four_eyes_are_two_people(
        self, house: House, sign_in: SignIn, session: Session
    ) -> None:
        job_id = house.held["eyes"]
        first = sign_in(house.provider.operator_token)
        page = first.get(f"{QUEUE}/{job_id}").text
        assert "You have approved." in page
        assert re.search(r'value="release"[^>]* disabled', page)
        assert decide(first, job_id, "release") == 409
        second = sign_in(house.staff.second_reviewer)
        assert "Yours would be the second approval" in second.get(f"{QUEUE}/{job_id}").text
        assert str(decide(second, job_id, "release")).startswith(QUEUE)
        assert job_of(session, job_id).status == JobStatus.SUCCEEDED

    def test_a_first_approval_is_no_release(
        self, reviewer: TestClient, house: House, session: Session
    ) -> None:
        job_id = house.held["eyes"]
        decide(reviewer, job_id, "reevaluate")
        job = job_of(session, job_id)
        job.status, job.stage, job.held_at = JobStatus.RUNNING, "review", job.created_at
        session.get_one(ModelVersion, job.result_model_id).gate = Gate.HELD
        session.commit()
        address = str(decide(reviewer, job_id, "release"))
        assert "is noted; 1 more reviewer must agree" in text_of(reviewer.get(address).text)
        assert job_of(session, job_id).awaits_review

    def test_second_decision_is_a_conflict(self, reviewer: TestClient, house: House) -> None:
        decide(reviewer, house.held["late"], "reject")
        assert decide(reviewer, house.held["late"], "release") == 409

    @pytest.mark.parametrize(
        ("decision", "reason"),
        [("release", ""), ("release", "  "), ("shrug", "x"), ("reject", "x" * 1001)],
    )
    def test_faulty_decision_is_refused(
        self, reviewer: TestClient, house: House, session: Session, decision: str, reason: str
    ) -> None:
        assert decide(reviewer, house.held["late"], decision, reason) == 400
        assert job_of(session, house.held["late"]).awaits_review

    def test_needs_the_form_token(
        self, reviewer: TestClient, house: House, session: Session
    ) -> None:
        form = {"csrf": "guess", "decision": "release", "reason": WHY}
        assert reviewer.post(f"{QUEUE}/{house.held['late']}", data=form).status_code == 403
        assert job_of(session, house.held["late"]).awaits_review


class TestHeldData:
    def test_stands_in_the_queue_with_what_was_found(
        self, reviewer: TestClient, house: House
    ) -> None:
        row = reviewer.get(QUEUE).text.split(f'id="row-{house.held["data"]}"')[1].split("</tr>")[0]
        text = text_of(row)
        assert "Training data 14 of 1,000 training rows were flagged as harmful" in text

    def test_page_is_about_the_data_alone(self, reviewer: TestClient, house: House) -> None:
        html = reviewer.get(f"{QUEUE}/{house.held['data']}").text
        text = text_of(html)
        assert "Why its data is held" in text
        assert "The policy&#39;s limit is 1%." in html
        assert "then it is rejected" in text
        assert f"/dashboard/jobs/{house.held['data']}/data?flagged=yes" in html
        assert "Measurements" not in text
        assert 'value="reevaluate"' not in html

    @pytest.mark.parametrize(
        ("decision", "status", "said"),
        [
            ("release", JobStatus.RUNNING, "is noted; 1 more reviewer must agree"),
            ("reject", JobStatus.FAILED, "Data rejected"),
        ],
    )
    def test_is_decided_on_as_a_model_is(
        self,
        reviewer: TestClient,
        house: House,
        session: Session,
        decision: str,
        status: JobStatus,
        said: str,
    ) -> None:
        job_id = house.held["data"]
        address = str(decide(reviewer, job_id, decision))
        assert job_of(session, job_id).status == status
        assert said in text_of(reviewer.get(address).text)

    def test_released_by_two_the_job_goes_on(
        self, reviewer: TestClient, house: House, session: Session, sign_in: SignIn
    ) -> None:
        job_id = house.held["data"]
        decide(reviewer, job_id, "release")
        address = str(decide(sign_in(house.staff.second_reviewer), job_id, "release"))
        assert job_of(session, job_id).status == JobStatus.QUEUED
        assert session.get_one(Screening, job_id, populate_existing=True).review == "released"
        assert "Data released" in text_of(reviewer.get(address).text)
        assert "The job goes on with every row." in reviewer.get(f"{QUEUE}/{job_id}").text

    def test_has_no_model_to_be_evaluated_again(
        self, reviewer: TestClient, house: House, session: Session
    ) -> None:
        assert decide(reviewer, house.held["data"], "reevaluate") == 409
        assert job_of(session, house.held["data"]).awaits_review


class TestWhoMay:
    def test_a_viewer_sees_everything_and_no_button(
        self, house: House, sign_in: SignIn, session: Session
    ) -> None:
        viewer = sign_in(house.staff.viewer)
        html = viewer.get(f"{QUEUE}/{house.held['eyes']}").text
        assert "Measurements" in html
        assert "A reviewer decides on it." in html
        assert "data-decide" not in html
        assert decide(viewer, house.held["eyes"], "reject") == 403
        assert job_of(session, house.held["eyes"]).awaits_review

    def test_customers_have_no_queue(self, house: House, sign_in: SignIn, session: Session) -> None:
        customer = sign_in(house.provider.customer_token)
        for address in (QUEUE, f"{QUEUE}/{house.held['late']}"):
            assert customer.get(address).status_code == 403
        form = {
            "csrf": csrf(customer.get("/dashboard/jobs")),
            "decision": "release",
            "reason": "mine",
        }
        assert customer.post(f"{QUEUE}/{house.held['late']}", data=form).status_code == 403
        assert job_of(session, house.held["late"]).awaits_review
