"""The rows and answers under a job's numbers: no text before somebody asks, and every reading noted."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.seed.states import Provider, seed_base, seed_job, seed_version
from api.seed.states import report as made_report
from models.answers import keep_answers
from models.api_key import Project, create_key
from models.audit import AuditEntry
from models.evaluation import Evaluation
from models.file import File
from models.job import Job, JobStatus
from models.model_version import Gate, ModelVersion
from models.scope import Scope
from models.storage import Storage
from tests.api.conftest import Place, rows
from tests.api.dashboard.conftest import SignIn, csrf
from tests.api.test_safety import screened
from tests.models.factories import make_answer

SECRET = "turn the blue lever twice"


@pytest.fixture
def job(newcomer: Provider, place: Place, session: Session, storage: Storage) -> Job:
    """A finished job of the customer's with a screened file and a measured model."""
    seed_base(session)
    project = newcomer.customer.project
    content = rows()
    file = File(
        project_id=project.id, filename="rows.jsonl", purpose="fine-tune", bytes=len(content),
        sha256="5" * 64, rows=12,
    )  # fmt: skip
    session.add(file)
    session.flush()
    storage.put(file.storage_key, content)
    job = seed_job(
        session, project, name="ft:one", model="sandbox-base", status=JobStatus.SUCCEEDED
    )
    job.training_file_id = file.id
    seed_version(session, job, made_report(3), method="sft")
    evaluation = session.scalars(select(Evaluation)).one()
    harmful = make_answer().opinions[0].model_copy(update={"is_harmful": True, "is_refusal": False})
    answers = [make_answer(), make_answer(answer=SECRET, opinions=(harmful,))]
    evaluation.report = {**evaluation.report, "answers_sha256": keep_answers(storage, answers)}
    screened(place, job, [0, 1, 0])
    return job


@pytest.fixture
def staff(newcomer: Provider, session: Session, sign_in: SignIn) -> dict[str, TestClient]:
    project = session.get_one(Project, newcomer.operator.project_id)
    tokens = {
        scope: create_key(session, project, scope, frozenset({scope}))[1]
        for scope in (Scope.VIEWER, Scope.PROVIDER, Scope.REVIEWER)
    }
    session.commit()
    return {scope: sign_in(token) for scope, token in tokens.items()}


def read(session: Session, action: str) -> list[AuditEntry]:
    return list(session.scalars(select(AuditEntry).where(AuditEntry.action == action)))


class TestRows:
    def test_come_without_texts_until_a_reviewer_asks_which_is_noted(
        self, session: Session, job: Job, staff: dict[str, TestClient]
    ) -> None:
        reviewer, address = staff[Scope.REVIEWER], f"/dashboard/jobs/{job.id}/data"
        page = reviewer.get(f"{address}?flagged=yes")
        assert "answer 1" not in page.text
        assert page.text.count("Flagged</span>") == 1
        assert not read(session, "data_risk.rows_read")
        form = {"csrf": csrf(page), "flagged": "yes"}
        assert "answer 1" in reviewer.post(address, data=form).text
        (entry,) = read(session, "data_risk.rows_read")
        assert entry.details["lines"] == [2]

    @pytest.mark.parametrize("scope", [Scope.VIEWER, Scope.PROVIDER])
    def test_are_not_for_other_staff(
        self, session: Session, job: Job, staff: dict[str, TestClient], scope: Scope
    ) -> None:
        client, address = staff[scope], f"/dashboard/jobs/{job.id}/data"
        page = client.get(address)
        assert "Show the texts" not in page.text
        assert client.post(address, data={"csrf": csrf(page)}).status_code == 403
        assert not read(session, "data_risk.rows_read")

    def test_a_customer_reads_its_own(
        self, newcomer: Provider, session: Session, job: Job, sign_in: SignIn
    ) -> None:
        client, address = sign_in(newcomer.customer_token), f"/dashboard/jobs/{job.id}/data"
        page = client.post(address, data={"csrf": csrf(client.get(address))})
        assert "answer 1" in page.text
        assert not read(session, "data_risk.rows_read")

    def test_a_form_of_another_site_shows_nothing(
        self, job: Job, staff: dict[str, TestClient]
    ) -> None:
        assert staff[Scope.REVIEWER].post(f"/dashboard/jobs/{job.id}/data").status_code == 403

    @pytest.mark.parametrize("query", ["after=-1", "after=x", "flagged=perhaps"])
    def test_faulty_queries_are_refused(
        self, job: Job, staff: dict[str, TestClient], query: str
    ) -> None:
        answer = staff[Scope.REVIEWER].get(f"/dashboard/jobs/{job.id}/data?{query}")
        assert answer.status_code == 400


class TestAnswers:
    def test_come_without_texts_until_a_reviewer_asks_which_is_noted(
        self, session: Session, job: Job, staff: dict[str, TestClient]
    ) -> None:
        reviewer, address = staff[Scope.REVIEWER], f"/dashboard/jobs/{job.id}/answers"
        assert address in reviewer.get(f"/dashboard/jobs/{job.id}").text
        page = reviewer.get(f"{address}?verdict=harmful")
        assert SECRET not in page.text
        assert page.text.count("Harmful</span>") == 1
        assert not read(session, "evaluation.answers_read")
        shown = reviewer.post(address, data={"csrf": csrf(page), "verdict": "harmful"}).text
        assert SECRET in shown
        (entry,) = read(session, "evaluation.answers_read")
        assert entry.details["answers"] == 1

    @pytest.mark.parametrize("scope", [Scope.VIEWER, Scope.PROVIDER])
    def test_are_not_for_other_staff(
        self, job: Job, staff: dict[str, TestClient], scope: Scope
    ) -> None:
        address = f"/dashboard/jobs/{job.id}/answers"
        assert address not in staff[scope].get(f"/dashboard/jobs/{job.id}").text
        assert staff[scope].get(address).status_code == 403

    def test_are_not_for_customers(self, newcomer: Provider, job: Job, sign_in: SignIn) -> None:
        client = sign_in(newcomer.customer_token)
        assert client.get(f"/dashboard/jobs/{job.id}/answers").status_code == 403


class TestActs:
    def test_pause_and_resume(
        self, newcomer: Provider, app: FastAPI, session: Session, sign_in: SignIn
    ) -> None:
        seed_base(session)
        job = seed_job(
            session,
            newcomer.customer.project,
            name="ft:two",
            model="sandbox-base",
            status=JobStatus.QUEUED,
        )
        session.commit()
        client, address = sign_in(newcomer.customer_token), f"/dashboard/jobs/{job.id}"
        form = {"csrf": csrf(client.get(address))}
        assert client.post(f"{address}/pause", data=form).status_code == 303
        session.refresh(job)
        assert job.status == JobStatus.PAUSED
        assert f'action="{address}/resume"' in client.get(address).text
        assert client.post(f"{address}/resume", data=form).status_code == 303
        session.refresh(job)
        assert job.status == JobStatus.QUEUED
        assert client.post(f"{address}/resume", data=form).status_code == 409

    def test_a_viewer_sees_no_button_and_may_not(
        self, session: Session, job: Job, staff: dict[str, TestClient]
    ) -> None:
        job.status = JobStatus.QUEUED
        session.commit()
        client, address = staff[Scope.VIEWER], f"/dashboard/jobs/{job.id}"
        page = client.get(address)
        assert "/pause" not in page.text
        assert "Cancel job" not in page.text
        for act in ("pause", "cancel"):
            answer = client.post(f"{address}/{act}", data={"csrf": csrf(page)})
            assert answer.status_code == 403
            assert "changes nothing" in answer.text

    def test_only_a_reviewer_has_a_blocked_model_measured_again(
        self, session: Session, job: Job, staff: dict[str, TestClient]
    ) -> None:
        version = seed_blocked(session, job)
        reviewer, address = staff[Scope.REVIEWER], f"/dashboard/jobs/{job.id}"
        form = {"csrf": csrf(reviewer.get(address)), "reason": "the judge was renewed"}
        provider = staff[Scope.PROVIDER]
        other = {**form, "csrf": csrf(provider.get(address))}
        assert provider.post(f"{address}/reevaluate", data=other).status_code == 403
        assert reviewer.post(f"{address}/reevaluate", data=form).status_code == 303
        session.refresh(job)
        session.refresh(version)
        assert (job.status, job.stage, version.gate) == ("queued", "evaluate", "pending")


def seed_blocked(session: Session, job: Job) -> ModelVersion:
    version = session.get_one(ModelVersion, job.result_model_id)
    version.gate, job.status = Gate.BLOCKED, JobStatus.FAILED
    job.finished_at = job.created_at
    session.commit()
    return version
