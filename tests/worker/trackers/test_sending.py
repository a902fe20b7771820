"""Curves at trackers: a stand-in MLflow server on a socket, and W&B's own client without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from models.job import Job, JobEvent, JobStatus, request_pause, resume
from tests.worker.toy_provider import ROWS, Provider, act_at_step
from tests.worker.trackers.mlflow_server import Tracker, mlflow_server
from worker import leased_job
from worker.trackers.run import Tracking, numbers_in
from worker.work import Workshop

# Each test runs whole jobs.
pytestmark = pytest.mark.long

MLFLOW: dict[str, object] = {
    "type": "mlflow",
    "mlflow": {"experiment": "mine", "name": "a run", "tags": {"team": "a"}},
}
WANDB: dict[str, object] = {"type": "wandb", "wandb": {"project": "mine", "tags": ["a"]}}


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    with mlflow_server() as tracker:
        yield tracker


def configured(shop: Workshop, tmp_path: Path, tracking: Tracking) -> Provider:
    return Provider(replace(shop, tracking=tracking), tmp_path)


def warned(provider: Provider, job: Job) -> list[JobEvent]:
    return [e for e in provider.events(job.id) if e.data and "integration" in e.data]


class TestMlflow:
    def test_the_curve_arrives_whole_in_the_tenant_s_own_experiment(
        self, shop: Workshop, tmp_path: Path, tracker: Tracker
    ) -> None:
        tracking = Tracking(mlflow_tracking_uri=tracker.url + "/", mlflow_token=SecretStr("t0ken"))
        provider = configured(shop, tmp_path, tracking)
        job = provider.run(provider.finetune(ROWS, integrations=[MLFLOW]))
        assert job.status == JobStatus.SUCCEEDED
        assert list(tracker.experiments) == [f"titer/{provider.project.id}/mine"]
        run = tracker.runs["run0"]
        assert (run["run_name"], run["status"]) == ("a run", "FINISHED")
        assert {"key": "team", "value": "a"} in run["tags"]  # type: ignore[operator]
        told = {
            e.data["step"]: e.data
            for e in provider.events(job.id)
            if e.type == "metrics" and e.data
        }
        for name in ("train_loss", "canary_loss", "full_valid_loss"):
            expected = [(s, d[name]) for s, d in told.items() if d.get(name) is not None]
            assert expected
            assert tracker.curve("run0", name) == expected
        assert tracker.parameters["run0"]["total_steps"] == "4"
        assert tracker.authorizations == {"Bearer t0ken"}
        assert warned(provider, job) == []

    def test_a_paused_job_goes_on_in_its_run(
        self,
        shop: Workshop,
        tmp_path: Path,
        tracker: Tracker,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(leased_job, "ASK_SECONDS", 0.0)
        provider = configured(shop, tmp_path, Tracking(mlflow_tracking_uri=tracker.url))
        job_id = provider.finetune(ROWS, integrations=[MLFLOW])
        with monkeypatch.context() as patch:
            act_at_step(patch, 2, lambda: provider.change(job_id, request_pause))
            provider.run(job_id)
        assert tracker.runs["run0"]["status"] == "KILLED"
        provider.change(job_id, resume)
        provider.run(job_id)
        assert list(tracker.runs) == ["run0"]
        assert tracker.runs["run0"]["status"] == "FINISHED"
        assert [step for step, _ in tracker.curve("run0", "train_loss")] == [1, 2, 3, 4]

    @pytest.mark.parametrize("broken_after", [0, 6])
    def test_a_server_that_fails_costs_the_job_nothing(
        self, shop: Workshop, tmp_path: Path, tracker: Tracker, broken_after: int
    ) -> None:
        tracker.broken_after = broken_after
        provider = configured(shop, tmp_path, Tracking(mlflow_tracking_uri=tracker.url))
        job = provider.run(provider.finetune(ROWS, integrations=[MLFLOW]))
        assert job.status == JobStatus.SUCCEEDED
        (event,) = warned(provider, job)
        assert event.data == {"integration": "mlflow", "code": "integration_failed"}
        assert tracker.url not in event.message
        assert tracker.calls == broken_after + 1  # it was not asked again

    def test_a_server_that_is_not_there_costs_the_job_nothing(
        self, shop: Workshop, tmp_path: Path
    ) -> None:
        provider = configured(shop, tmp_path, Tracking(mlflow_tracking_uri="http://127.0.0.1:1"))
        job = provider.run(provider.finetune(ROWS, integrations=[MLFLOW]))
        assert job.status == JobStatus.SUCCEEDED
        assert len(warned(provider, job)) == 1


class TestWandb:
    @pytest.mark.processes
    def test_the_client_writes_the_curve_and_nothing_of_this_machine(
        self, shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        key = "k" * 40
        provider = configured(shop, tmp_path, Tracking(wandb_api_key=SecretStr(key)))
        job = provider.run(provider.finetune(ROWS, integrations=[WANDB]))
        assert job.status == JobStatus.SUCCEEDED
        assert warned(provider, job) == []
        folder = provider.shop.cache / "trackers" / job.id
        (written,) = folder.rglob("*.wandb")
        content = written.read_bytes()
        for word in (f"{provider.project.id}-mine", job.id, "train_loss", "canary_loss"):
            assert word.encode() in content
        kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        assert not any(key.encode() in everything for everything in kept)
        assert not list(folder.rglob("requirements.txt"))
        assert not (tmp_path / "home" / ".netrc").exists()

    def test_without_a_key_the_job_says_so_and_goes_on(self, provider: Provider) -> None:
        job = provider.run(provider.finetune(ROWS, integrations=[WANDB, MLFLOW]))
        assert job.status == JobStatus.SUCCEEDED
        events = warned(provider, job)
        assert [(e.level, e.data["integration"], e.data["code"]) for e in events if e.data] == [
            ("warn", "wandb", "integration_not_configured"),
            ("warn", "mlflow", "integration_not_configured"),
        ]
        assert "not configured" in events[0].message

    def test_without_its_client_the_job_says_so_and_goes_on(
        self, shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "wandb", None)
        provider = configured(shop, tmp_path, Tracking(wandb_api_key=SecretStr("k")))
        job = provider.run(provider.finetune(ROWS, integrations=[WANDB]))
        assert job.status == JobStatus.SUCCEEDED
        assert "extra 'wandb'" in warned(provider, job)[0].message


def test_only_finite_numbers_make_a_curve() -> None:
    data = {"a": 1, "b": 0.5, "c": None, "d": "x", "e": True, "f": float("nan"), "g": float("inf")}
    assert numbers_in(data) == {"a": 1.0, "b": 0.5}
