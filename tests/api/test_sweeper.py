"""The sweeper: each thing it finds, what it leaves alone, and that an outage does not end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import sessionmaker

from api import sweeper
from api.sweeper import ABANDONED, RING_AGAIN, SweepReport, run, sweep, tidy
from api.webhooks.signing import SecretBox, new_secret
from models.api_key import Project
from models.audit import AuditEntry
from models.base import utc_now
from models.file import content_key
from models.job import Job, JobEvent, JobStatus, Stage, cancel, claim
from models.job_checkpoint import JobCheckpoint, checkpoint_name, resume_prefix
from models.model_version import Gate, ModelVersion, VersionKind
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from models.upload import Upload, UploadPart
from tests.api.conftest import Place, SilentDoorbell
from tests.api.webhooks.receiver import receiving
from tests.models.factories import make_file, make_job, make_project
from tests.models.test_webhook import make_endpoint

Sweep = Callable[[], SweepReport]


@pytest.fixture
def swept(place: Place, settings: Settings, doorbell: SilentDoorbell) -> Sweep:
    place.session.commit()
    sessions = sessionmaker(
        place.session.connection(), join_transaction_mode="create_savepoint", expire_on_commit=False
    )

    def go() -> SweepReport:
        place.session.commit()
        report = sweep(sessions, doorbell, settings)  # type: ignore[arg-type]
        place.session.expire_all()
        return report

    return go


@pytest.fixture
def tidied(place: Place, settings: Settings) -> Callable[..., int]:
    sessions = sessionmaker(
        place.session.connection(), join_transaction_mode="create_savepoint", expire_on_commit=False
    )

    def go(**changes: object) -> int:
        place.session.commit()
        return tidy(sessions, place.storage, settings.model_copy(update=changes))

    return go


def test_there_may_be_nothing_to_do(swept: Sweep) -> None:
    assert swept() == SweepReport()
    assert not swept().did_anything


class TestRinging:
    def test_for_jobs_never_rung_and_rung_long_ago(
        self, place: Place, aligned: ModelVersion, swept: Sweep, doorbell: SilentDoorbell
    ) -> None:
        project = place.project()
        never = place.job(project, aligned)
        long_ago = place.job(project, aligned, rung_at=utc_now() - RING_AGAIN * 2)
        just_now = place.job(project, aligned, rung_at=utc_now())
        ended = place.job(project, aligned, status=JobStatus.CANCELLED)
        assert swept().rung == 2
        assert doorbell.rung == [never.id, long_ago.id]
        assert swept().rung == 0
        assert just_now.id not in doorbell.rung
        assert ended.id not in doorbell.rung

    def test_not_while_messages_wait_for_a_busy_worker(
        self, place: Place, aligned: ModelVersion, swept: Sweep, doorbell: SilentDoorbell
    ) -> None:
        place.job(place.project(), aligned, rung_at=utc_now() - RING_AGAIN * 2)
        doorbell.waiting = lambda: 1  # type: ignore[method-assign]
        assert swept().rung == 0

    def test_again_once_the_broker_is_back(
        self, place: Place, aligned: ModelVersion, swept: Sweep, doorbell: SilentDoorbell
    ) -> None:
        place.job(place.project(), aligned)
        doorbell.is_up = False
        assert swept().rung == 0
        doorbell.is_up = True
        assert swept().rung == 1


class TestLostLeases:
    def test_a_silent_workers_job_is_queued_and_rung_for(
        self, place: Place, aligned: ModelVersion, swept: Sweep, doorbell: SilentDoorbell
    ) -> None:
        job = place.job(place.project(), aligned, rung_at=utc_now())
        assert claim(place.session, job.id, owner="w", lease_seconds=60) is not None
        assert swept() == SweepReport()
        job.lease_expires_at = utc_now() - timedelta(seconds=1)
        report = swept()
        assert (report.requeued, report.rung) == (1, 1)
        assert job.status == JobStatus.QUEUED
        assert doorbell.rung == [job.id]

    def test_after_too_many_losses_it_is_given_up(
        self, place: Place, aligned: ModelVersion, swept: Sweep, settings: Settings
    ) -> None:
        job = place.job(place.project(), aligned, losses_in_a_row=settings.max_attempts - 1)
        claim(place.session, job.id, owner="w", lease_seconds=60)
        job.lease_expires_at = utc_now() - timedelta(seconds=1)
        assert swept().given_up == 1
        assert (job.status, job.error_code) == (JobStatus.FAILED, "worker_lost")

    def test_a_job_in_review_has_no_lease_to_lose(
        self, place: Place, aligned: ModelVersion, swept: Sweep
    ) -> None:
        _, job = place.held(place.project(), aligned)
        job.review_expires_at = utc_now() + timedelta(hours=1)
        assert swept() == SweepReport()
        assert job.stage == Stage.REVIEW


class TestReviews:
    def test_one_that_nobody_decided_is_blocked(
        self, place: Place, aligned: ModelVersion, swept: Sweep
    ) -> None:
        version, job = place.held(place.project(), aligned)
        job.review_expires_at = utc_now() - timedelta(seconds=1)
        assert swept().reviews_expired == 1
        assert (job.status, job.error_code) == (JobStatus.FAILED, "review_expired")
        assert version.gate == Gate.BLOCKED
        assert "in time" in version.gate_reasons[-1]
        events = place.session.scalars(
            select(JobEvent.sequence).where(JobEvent.job_id == job.id).order_by(JobEvent.sequence)
        ).all()
        assert list(events) == list(range(1, job.event_count + 1))
        assert swept() == SweepReport()


class TestFiles:
    def test_expired_ones_go_with_their_bytes(self, place: Place, swept: Sweep) -> None:
        key = content_key("ab" * 32)
        place.storage.put(key, b"x")
        make_file(place.session, place.project(), expires_at=utc_now())
        report = swept()
        assert (report.files_expired, report.removed) == (1, 1)
        assert not place.storage.exists(key)
        assert swept() == SweepReport()

    def test_uploads_nobody_completed_go_with_their_parts(self, place: Place, swept: Sweep) -> None:
        upload = Upload(
            project_id=place.project().id,
            filename="a",
            purpose="fine-tune",
            mime_type="text/jsonl",
            bytes=1,
            expires_at=utc_now() - timedelta(days=1),
        )
        place.session.add(upload)
        place.session.flush()
        part = UploadPart(upload_id=upload.id, bytes=1)
        place.session.add(part)
        place.session.flush()
        key = part.storage_key
        place.storage.put(key, b"x")
        report = swept()
        assert (report.uploads_expired, report.removed) == (1, 1)
        assert not place.storage.exists(key)
        assert swept() == SweepReport()

    def test_jobs_do_not_wait_for_a_storage_that_is_away(
        self,
        place: Place,
        aligned: ModelVersion,
        swept: Sweep,
        doorbell: SilentDoorbell,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        file = make_file(place.session, place.project(), expires_at=utc_now())
        job = place.job(place.project(), aligned)
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "delete", away)
            report = swept()
        assert (report.files_expired, report.removed, report.rung) == (1, 0, 1)
        assert doorbell.rung == [job.id]
        assert file.removed_at is None
        assert swept().removed == 1

    def test_what_killed_processes_left_goes_after_a_day(
        self, storage: Storage, tidied: Callable[[], int]
    ) -> None:
        storage.put("incoming/new", b"x")
        storage.put("incoming/old", b"x")
        storage.put("files/old", b"x")
        assert storage.root is not None
        long_ago = time.time() - 2 * ABANDONED.total_seconds()
        for name in ("incoming/old", "files/old"):
            os.utime(storage.root / name, (long_ago, long_ago))
        assert tidied() == 1
        assert storage.exists("incoming/new")
        assert storage.exists("files/old")


def away(*_: object) -> None:
    raise OSError("away")


class TestCheckpoints:
    @pytest.fixture
    def failed(self, place: Place, aligned: ModelVersion) -> Job:
        """Failed a month ago; of three epochs one was released, one blocked, and the last is the job's model."""
        long_ago = utc_now() - timedelta(days=31)
        job = place.job(place.project(), aligned, status=JobStatus.FAILED, finished_at=long_ago)
        self.add(place, job, aligned, 3, Gate.RELEASED)
        self.add(place, job, aligned, 6, Gate.BLOCKED)
        self.add(place, job, aligned, 9, Gate.BLOCKED, is_last=True)
        place.session.commit()
        return job

    def add(
        self,
        place: Place,
        job: Job,
        parent: ModelVersion,
        step: int,
        gate: Gate,
        *,
        is_last: bool = False,
    ) -> None:
        project = place.session.get_one(Project, job.project_id)
        name = job.result_model_id if is_last else checkpoint_name(job.result_model_id, step)
        version = place.version(
            name,
            VersionKind.TUNED,
            gate=gate,
            parent=parent,
            project=project,
            job=job if is_last else None,
        )
        version.source = {"prefix": f"epochs/{job.id}/1-{step}"}
        place.storage.put(f"epochs/{job.id}/1-{step}/weights", b"w")
        place.session.add(
            JobCheckpoint(job_id=job.id, step=step, version_name=name, metrics={"step": step})
        )

    def weights(self, place: Place, job: Job) -> list[str]:
        return place.storage.names(f"epochs/{job.id}")

    def test_of_a_job_that_failed_long_ago_go_unless_they_are_released(
        self, tidied: Callable[[], int], place: Place, failed: Job
    ) -> None:
        assert tidied() == 1
        assert self.weights(place, failed) == ["1-3", "1-9"]
        blocked = place.session.get_one(
            ModelVersion, checkpoint_name(failed.result_model_id, 6), populate_existing=True
        )
        assert blocked.deleted_at is not None
        (entry,) = place.session.scalars(select(AuditEntry)).all()
        assert (entry.action, entry.subject_id) == ("job.checkpoints_removed", failed.id)
        assert entry.details == {"models": [blocked.id]}
        assert tidied() == 0

    def test_of_one_that_ended_lately_or_well_or_runs_again_stay(
        self, tidied: Callable[[], int], place: Place, failed: Job
    ) -> None:
        for facts in (
            {"finished_at": utc_now() - timedelta(days=29)},
            {"finished_at": utc_now() - timedelta(days=31), "status": JobStatus.SUCCEEDED},
            {"finished_at": None, "status": JobStatus.QUEUED},
        ):
            for name, value in facts.items():
                setattr(failed, name, value)
            place.session.commit()
            assert tidied() == 0
        assert len(self.weights(place, failed)) == 3

    def test_what_another_model_was_made_from_stays(
        self, tidied: Callable[[], int], place: Place, failed: Job
    ) -> None:
        parent = place.session.get_one(ModelVersion, checkpoint_name(failed.result_model_id, 6))
        project = place.session.get_one(Project, failed.project_id)
        place.version("ft:child", VersionKind.TUNED, parent=parent, project=project)
        assert tidied() == 0

    def test_they_may_stay_for_ever(
        self, tidied: Callable[..., int], place: Place, failed: Job
    ) -> None:
        assert tidied(checkpoint_days=0) == 0
        assert len(self.weights(place, failed)) == 3

    def test_where_the_storage_is_away_the_next_round_finds_them(
        self,
        tidied: Callable[[], int],
        place: Place,
        failed: Job,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "delete_folder", away)
            with pytest.raises(OSError, match="away"):
                tidied()
        assert tidied() == 1

    def test_what_a_run_could_have_gone_on_from_goes_with_its_end(
        self, tidied: Callable[[], int], place: Place, aligned: ModelVersion
    ) -> None:
        jobs = [
            place.job(place.project(str(status)), aligned, status=status)
            for status in (JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.PAUSED)
        ]
        for job in jobs:
            place.storage.put(f"{resume_prefix(job.id)}/step-1/weights", b"w")
        assert tidied() == 2
        assert place.storage.names("checkpoints") == [jobs[2].id]


class TestLoop:
    def test_an_outage_is_waited_out(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop = threading.Event()
        waits: list[float | None] = []

        def wait(seconds: float | None = None) -> bool:
            waits.append(seconds)
            return len(waits) > 4

        monkeypatch.setattr(stop, "wait", wait)
        # Nothing listens where these settings point.
        run(settings, stop)
        assert waits == [5.0, 10.0, 20.0, 40.0, 60.0]

    def test_an_odd_fault_does_not_end_the_watch(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop = threading.Event()
        calls: list[int] = []

        def broken(*_: object) -> SweepReport:
            calls.append(1)
            if len(calls) == 2:
                stop.set()
            raise RuntimeError("odd")

        monkeypatch.setattr(sweeper, "sweep", broken)
        monkeypatch.setattr(sweeper, "MAX_BACKOFF_SECONDS", 0.01)
        run(settings.model_copy(update={"sweep_seconds": 0.01}), stop)
        assert len(calls) == 2

    @pytest.mark.processes
    def test_the_process_delivers_webhooks_and_ends_cleanly_at_sigterm(
        self, database_url: str, redis_url: str, tmp_path: Path
    ) -> None:
        key = "k" * 32
        environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "STORAGE_URL": tmp_path.as_uri(),
            "TITER_SWEEP_SECONDS": "0.05",
            "TITER_WEBHOOK_KEY": key,
            "TITER_WEBHOOK_ALLOW_PRIVATE": "true",
        }
        secret = new_secret()
        with (
            receiving() as receiver,
            subprocess.Popen(
                [sys.executable, "-m", "api.sweeper"], env=environment, stderr=subprocess.PIPE
            ) as process,
        ):
            assert process.stderr is not None
            first = process.stderr.readline() + process.stderr.readline()
            engine = make_engine(database_url)
            with session_factory(engine).begin() as session:
                project = make_project(session)
                sealed = SecretBox(key).seal(secret)
                make_endpoint(session, project, url=receiver.url, sealed_secret=sealed)
                job = make_job(session, project)
                session.flush()
                cancel(session, job)
            engine.dispose()
            deadline = time.monotonic() + 30
            while not receiver.received and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(30) == 0
        assert receiver.received[0].unwrap(secret).data.id == job.id
        assert b"sweeper_started" in first
        assert b"deliverer_started" in first
        assert b"sweeper_stopped" in rest
        assert b"deliverer_stopped" in rest
        assert b"Traceback" not in rest
