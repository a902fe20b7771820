"""What is read from the database: right numbers, few labels, and nothing of the history."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from api.metrics import readings
from api.metrics.database import DatabaseMetrics
from api.metrics.readings import SCORE_BUCKETS, read_all
from models.base import utc_now
from models.job import JobKind, JobStatus, Stage
from models.model_version import Gate, ModelVersion, VersionKind
from models.session import make_engine
from models.webhook import DeliveryStatus, WebhookDelivery, WebhookEventType, publish
from models.worker import speak
from tests.api.conftest import Place
from tests.models.test_webhook import make_endpoint

HOUR = timedelta(hours=1)
Labels = dict[str, str]


def read(session: Session) -> dict[str, list[tuple[Labels, float]]]:
    """Every sample by its name."""
    session.flush()
    found: dict[str, list[tuple[Labels, float]]] = {}
    for metric in read_all(session):
        for sample in metric.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(session: Session, name: str, **labels: str) -> float:
    (found,) = [value for known, value in read(session)[name] if labels.items() <= known.items()]
    return found


class TestJobs:
    def test_open_ones_are_told_by_kind_state_and_stage(
        self, place: Place, aligned: ModelVersion
    ) -> None:
        project = place.project()
        place.job(project, aligned)
        place.job(project, aligned)
        place.job(
            project,
            aligned,
            status=JobStatus.RUNNING,
            stage=Stage.TRAIN,
            lease_expires_at=utc_now() + HOUR,
        )
        place.held(project, aligned)
        place.job(project, aligned, status=JobStatus.RUNNING, stage=Stage.DATA_REVIEW)
        place.job(project, aligned, kind=JobKind.ALIGN, status=JobStatus.PAUSED, stage=Stage.TRAIN)
        place.job(project, aligned, status=JobStatus.FAILED, finished_at=utc_now())
        told = read(place.session)["titer_jobs"]
        assert sorted((tuple(labels.values()), value) for labels, value in told) == [
            (("align", "paused", "train"), 1),
            (("finetune", "queued", ""), 2),
            (("finetune", "review", "data_review"), 1),
            (("finetune", "review", "review"), 1),
            (("finetune", "running", "train"), 1),
        ]

    def test_of_those_that_ended_a_day_is_told(self, place: Place, aligned: ModelVersion) -> None:
        project = place.project()
        for age in (0, 23, 25):
            place.job(
                project,
                aligned,
                status=JobStatus.SUCCEEDED,
                finished_at=utc_now() - age * HOUR,
                lost_leases=1,
            )
        running = {"status": JobStatus.RUNNING, "lease_expires_at": utc_now() + HOUR}
        place.job(project, aligned, **running, lost_leases=2)
        ended = "titer_jobs_ended_last_day"
        assert value(place.session, ended, kind="finetune", state="succeeded") == 2
        assert value(place.session, ended, kind="certify", state="failed") == 0
        assert value(place.session, "titer_lost_leases", kind="finetune") == 4

    def test_a_lease_that_nobody_took_back_shows_for_how_long(
        self, place: Place, aligned: ModelVersion
    ) -> None:
        project = place.project()
        running = {"status": JobStatus.RUNNING, "stage": Stage.TRAIN}
        place.job(project, aligned, **running, lease_expires_at=utc_now() + HOUR)
        assert value(place.session, "titer_lease_overdue_seconds") == 0
        place.job(project, aligned, **running, lease_expires_at=utc_now() - HOUR)
        late = value(place.session, "titer_lease_overdue_seconds")
        assert late == pytest.approx(3600, abs=30)


class TestQueue:
    def test_depth_and_age_are_told_by_priority(self, place: Place, aligned: ModelVersion) -> None:
        high, low = place.project("high"), place.project("low")
        high.priority, low.priority = "high", "low"
        place.job(high, aligned, created_at=utc_now() - HOUR)
        place.job(high, aligned)
        place.job(low, aligned, status=JobStatus.RUNNING, created_at=utc_now() - HOUR)
        depth, age = "titer_queue_jobs", "titer_queue_oldest_age_seconds"
        told = {labels["priority"]: n for labels, n in read(place.session)[depth]}
        assert told == {"high": 2, "normal": 0, "low": 0}
        assert value(place.session, age, priority="high") == pytest.approx(3600, abs=30)
        assert value(place.session, age, priority="low") == 0


class TestReviews:
    def test_depth_age_and_time_left_are_told(self, place: Place, aligned: ModelVersion) -> None:
        assert "titer_review_time_left_seconds" not in read(place.session)
        project = place.project()
        _, job = place.held(project, aligned)
        job.held_at, job.review_expires_at = utc_now() - 2 * HOUR, utc_now() + HOUR
        _, later = place.held(project, aligned)
        later.held_at, later.review_expires_at = utc_now(), utc_now() + 3 * HOUR
        found = read(place.session)
        assert found["titer_review_jobs"] == [({}, 2)]
        age = found["titer_review_oldest_age_seconds"][0][1]
        left = found["titer_review_time_left_seconds"][0][1]
        assert (age, left) == (pytest.approx(7200, abs=30), pytest.approx(3600, abs=30))


class TestWorkers:
    def test_those_alive_are_told_with_what_they_do(
        self, place: Place, aligned: ModelVersion
    ) -> None:
        job = place.job(place.project(), aligned, status=JobStatus.RUNNING)
        facts = {"host": "a", "started_at": utc_now(), "version": "1"}
        gpu = {"memory_bytes": 80, "memory_used_bytes": 20, "utilisation_percent": 50.0}
        speak(place.session, "a:1", {**facts, "device": "cuda: X", "job_id": job.id, **gpu})
        speak(place.session, "b:1", {**facts, "device": "cpu"})
        speak(place.session, "c:1", {**facts, "device": "cpu", "stopped_at": utc_now()})
        speak(place.session, "d:1", {**facts, "device": "cpu"})
        place.session.execute(
            text("update workers set seen_at = seen_at - interval '1 hour' where id = 'd:1'")
        )
        found = read(place.session)
        assert {labels["state"]: n for labels, n in found["titer_workers"]} == {
            "busy": 1,
            "idle": 1,
        }
        assert found["titer_worker_job"] == [({"worker": "a:1", "kind": "finetune"}, 1)]
        assert found["titer_worker_gpu_utilisation_ratio"] == [({"worker": "a:1"}, 0.5)]
        assert found["titer_worker_memory_used_bytes"] == [({"worker": "a:1"}, 20)]
        silent = {labels["worker"] for labels, _ in found["titer_worker_silence_seconds"]}
        assert silent == {"a:1", "b:1"}


class TestDecisions:
    def tuned(self, place: Place, parent: ModelVersion, gate: Gate) -> ModelVersion:
        project = place.project()
        name = f"ft:{parent.id}:{project.id}"
        return place.version(name, VersionKind.TUNED, gate=gate, parent=parent, project=project)

    def test_a_day_of_them_is_told_by_kind_and_verdict(
        self, place: Place, aligned: ModelVersion
    ) -> None:
        place.evaluation(self.tuned(place, aligned, Gate.BLOCKED), harmful=60)
        old = place.evaluation(self.tuned(place, aligned, Gate.RELEASED), harmful=1)
        old.created_at = utc_now() - 25 * HOUR
        told = {
            tuple(labels.values()): n
            for labels, n in read(place.session)["titer_gate_decisions_last_day"]
        }
        assert {key: n for key, n in told.items() if n} == {
            ("aligned", "released"): 1,
            ("tuned", "blocked"): 1,
        }
        assert len(told) == 2 * len(Gate)

    @pytest.mark.parametrize(
        ("percent", "bucket"), [(0, 0), (1, 0), (2, 1), (15, 4), (16, 5), (75, 8), (100, 9)]
    )
    def test_a_score_is_counted_up_to_its_bucket_s_end(
        self, place: Place, aligned: ModelVersion, percent: int, bucket: int
    ) -> None:
        place.session.execute(text("delete from evaluations"))
        place.evaluation(self.tuned(place, aligned, Gate.HELD), harmful=percent)
        found = read(place.session)
        counts = [n for _, n in found["titer_harmful_score_percent_bucket"]]
        ends = len(SCORE_BUCKETS)
        assert counts == [0] * bucket + [1] * (ends - bucket) + [1]
        assert found["titer_harmful_score_percent_gsum"] == [({"base": "tiny"}, percent)]

    def test_rare_bases_share_a_series(
        self, place: Place, base: ModelVersion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(readings, "MAX_BASES", 1)
        for name, times in (("one", 1), ("two", 1), ("many", 3)):
            root = place.version(name, VersionKind.BASE)
            for _ in range(times):
                place.evaluation(self.tuned(place, root, Gate.RELEASED), harmful=4)
        told = read(place.session)["titer_harmful_score_percent_gcount"]
        assert {labels["base"]: n for labels, n in told} == {"many": 3, "other": 2}


class TestWebhooks:
    def test_what_is_due_and_what_came_of_a_day_is_told(self, place: Place) -> None:
        project = place.project()
        endpoint = make_endpoint(place.session, project)
        for _ in range(3):
            assert publish(place.session, project.id, WebhookEventType.FINETUNE_FAILED, {"id": "x"})
        place.session.flush()
        first, second, third = place.session.query(WebhookDelivery).order_by(WebhookDelivery.id)
        first.status, first.next_attempt_at = DeliveryStatus.FAILED, None
        second.next_attempt_at = utc_now() - HOUR
        third.next_attempt_at = utc_now() + HOUR
        outcomes = "titer_webhook_deliveries_last_day"
        assert value(place.session, outcomes, outcome="failed") == 1
        assert value(place.session, outcomes, outcome="delivered") == 0
        assert value(place.session, "titer_webhook_deliveries_pending") == 2
        overdue = value(place.session, "titer_webhook_overdue_seconds")
        assert overdue == pytest.approx(3600, abs=30)
        endpoint.disabled_at = utc_now()
        assert value(place.session, "titer_webhook_overdue_seconds") == 0


class TestCollector:
    def names(self, collector: DatabaseMetrics) -> set[str]:
        return {metric.name for metric in collector.collect()}

    def test_asks_the_database_once_for_many_readers(
        self, place: Place, aligned: ModelVersion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sessions = sessionmaker(
            place.session.connection(), join_transaction_mode="create_savepoint"
        )
        asked: list[bool] = []

        def give() -> sessionmaker[Session]:
            asked.append(True)
            return sessions

        collector = DatabaseMetrics(give)
        assert self.names(collector) == self.names(collector)
        assert len(asked) == 1
        monkeypatch.setattr("api.metrics.database.KEPT_SECONDS", -1.0)
        collector = DatabaseMetrics(give)
        assert "titer_jobs" in self.names(collector) & self.names(collector)
        assert len(asked) == 3

    def test_a_database_that_is_away_is_told(self) -> None:
        nowhere = make_engine("postgresql://titer@127.0.0.1:1/none")
        collector = DatabaseMetrics(lambda: sessionmaker(nowhere))
        told = {metric.name: metric.samples[0].value for metric in collector.collect()}
        assert told.pop("titer_database_up") == 0
        assert set(told) == {"titer_database_read_seconds"}
