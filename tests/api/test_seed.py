"""Made-up data: it is what the service itself would have written, and it is there once."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from api.cli import app
from api.embedded.database import lend_database
from api.seed.demo import FilledAlready, NotEmpty, seed_demo
from models.api_key import find_key
from models.audit import verify
from models.certificate import Certificate
from models.data_risk import Screening
from models.evaluation import Evaluation
from models.job import Job, JobEvent, JobStatus
from models.model_version import CANARY_FELL, Gate, ModelVersion
from models.policy import PolicyRules, decide
from models.priority import Priority
from models.project import Project
from models.project_use import ProjectUse
from models.risk import last_risks, risk_history
from models.scope import Scope
from models.session import make_engine, session_factory
from models.storage import Storage
from models.stored_certificate import JSON_FILE, PAGE_FILE, StoredCertificate
from models.worker import Worker
from tests.api.conftest import Place


class TestDemo:
    @pytest.fixture
    def filled(self, session: Session) -> Session:
        seed_demo(session, points=4, jobs=30)
        session.expire_all()
        return session

    def test_has_something_for_every_page(self, filled: Session) -> None:
        statuses = set(filled.scalars(select(Job.status)))
        assert statuses == set(JobStatus) - {JobStatus.VALIDATING_FILES}
        assert set(filled.scalars(select(ModelVersion.gate))) == set(Gate)
        assert set(filled.scalars(select(Project.priority))) == set(Priority)
        for table in (Worker, Screening, StoredCertificate, ProjectUse):
            assert filled.scalar(select(func.count()).select_from(table)), table
        assert filled.scalar(select(func.count()).select_from(ModelVersion).where(CANARY_FELL))

    def test_risks_stand_beside_decisions_and_rise(self, filled: Session) -> None:
        acme = filled.scalars(select(Project).where(Project.name == "Acme Support")).one()
        risks = [step.risk for step in reversed(risk_history(filled, acme.id, at_most=500))]
        assert None not in risks
        assert risks == sorted(risks)  # type: ignore[type-var]
        assert last_risks(filled, [acme.id])[acme.id] == risks[-1]

    def test_reads_back_into_its_types(self, filled: Session) -> None:
        for evaluation in filled.scalars(select(Evaluation)):
            report = evaluation.parsed()
            assert evaluation.harmful_score_percent == report.harmful_score.percent
            assert evaluation.gate == decide(report, PolicyRules()).gate
        for screening in filled.scalars(select(Screening)):
            assert screening.parsed() is not None
        for certificate in filled.scalars(select(StoredCertificate)):
            assert certificate.parsed().titer.steps

    def test_logs_count_without_gaps_and_nothing_ends_before_it_begins(
        self, filled: Session
    ) -> None:
        counts = dict(
            filled.execute(select(JobEvent.job_id, func.count()).group_by(JobEvent.job_id)).all()
        )
        highest = dict(
            filled.execute(
                select(JobEvent.job_id, func.max(JobEvent.sequence)).group_by(JobEvent.job_id)
            ).all()
        )
        assert counts == highest
        for job in filled.scalars(select(Job)):
            assert job.event_count == counts.get(job.id, 0), job.result_model_id
            assert job.is_terminal == (job.finished_at is not None), job.result_model_id
            assert job.finished_at is None or job.finished_at >= job.created_at

    def test_decisions_are_in_an_audit_log_that_is_whole(self, filled: Session) -> None:
        report = verify(filled)
        assert report.is_whole
        assert report.entries > 10

    def test_waiting_jobs_are_not_for_real_workers(self, filled: Session) -> None:
        """Each project that has one waiting has as many running as it may."""
        waiting = set(filled.scalars(select(Job.project_id).where(Job.status == JobStatus.QUEUED)))
        assert waiting
        for project_id in waiting:
            running = filled.scalar(
                select(func.count())
                .select_from(Job)
                .where(
                    Job.project_id == project_id,
                    Job.status == JobStatus.RUNNING,
                    Job.lease_expires_at.is_not(None),
                )
            )
            assert filled.get_one(Project, project_id).quota_jobs_running == 1 <= running

    def test_is_there_once(self, filled: Session) -> None:
        with pytest.raises(FilledAlready):
            seed_demo(filled, anyway=True)

    def test_does_not_join_real_jobs_unless_told(
        self, place: Place, session: Session, aligned: ModelVersion
    ) -> None:
        place.job(place.project(), aligned)
        with pytest.raises(NotEmpty, match="--anyway"):
            seed_demo(session)
        seed_demo(session, points=2, jobs=2, anyway=True)


@pytest.mark.long
class TestCommand:
    def tokens(self, output: str) -> dict[str, str]:
        return dict(line.rsplit(None, 1) for line in output.strip().splitlines())

    def test_prints_a_living_key_for_each_role(
        self, database_url: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", database_url)
        monkeypatch.setenv("STORAGE_URL", storage.url)
        result = CliRunner().invoke(app, ["db", "seed"])
        assert result.exit_code == 0, result.output
        tokens = self.tokens(result.stdout)
        with session_factory(make_engine(database_url))() as session:
            scopes = {
                name.split()[0]: set(find_key(session, token).scopes)
                for name, token in tokens.items()
            }
            for certificate in session.scalars(select(StoredCertificate)):
                Certificate.model_validate_json(storage.get(f"{certificate.prefix}/{JSON_FILE}"))
                assert b"made up" in storage.get(f"{certificate.prefix}/{PAGE_FILE}")
        assert scopes.pop("operator") >= {Scope.OPERATOR}
        assert scopes == {str(s): {s} for s in set(Scope) - {Scope.OPERATOR}}
        again = CliRunner().invoke(app, ["db", "seed"])
        assert again.exit_code == 1
        assert "filled with made-up data before" in again.stderr

    def test_says_that_the_storage_cannot_be_written_to(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", database_url)
        monkeypatch.setenv("STORAGE_URL", "file:///dev/null/storage")
        result = CliRunner().invoke(app, ["db", "seed"])
        assert result.exit_code == 1
        assert "STORAGE_URL" in result.stderr
        with session_factory(make_engine(database_url))() as session:
            assert session.scalar(select(func.count()).select_from(Job)) == 0

    @pytest.mark.processes
    def test_without_an_address_fills_the_folder_of_titer_up_running_or_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DATABASE_URL", raising=False)
        monkeypatch.delenv("STORAGE_URL", raising=False)
        state = tmp_path / "a state"
        command = ["--state", str(state), "db", "seed"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        with lend_database(state) as url, session_factory(make_engine(url))() as session:
            key = find_key(session, self.tokens(result.stdout)["operator"])
            assert Scope.OPERATOR in key.scopes
            assert list((state / "storage" / "certificates").iterdir())
            # The folder is taken now, as by a running service, whose database is asked.
            again = CliRunner().invoke(app, command)
        assert again.exit_code == 1
        assert "filled with made-up data before" in again.stderr

    def test_says_why_the_folder_cannot_be_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DATABASE_URL", raising=False)
        (tmp_path / "file").write_text("")
        result = CliRunner().invoke(app, ["--state", str(tmp_path / "file"), "db", "seed"])
        assert result.exit_code == 1
        assert "cannot be used" in result.stderr
