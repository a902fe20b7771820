"""A paused job lets go of the worker, and goes on later with the numbers of one that was never paused."""

from __future__ import annotations

import shutil

import pytest
from sqlalchemy.orm import Session

from models.base import utc_now
from models.job import Job, JobEvent, JobStatus, Stage, cancel, request_pause, resume
from models.job_checkpoint import resume_prefix
from models.model_version import ModelVersion
from tests.worker.toy_provider import ROWS, Provider, act_at_step
from worker import leased_job, measure, pipeline

# Each test runs whole jobs.
pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _asked_before_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leased_job, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(leased_job, "PROGRESS_SECONDS", 0.0)


def pause_at_step(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, job_id: str, step: int
) -> None:
    act_at_step(monkeypatch, step, lambda: provider.change(job_id, request_pause))


def pause_while_measuring(provider: Provider, monkeypatch: pytest.MonkeyPatch, job_id: str) -> None:
    report = measure.make_report

    def pause_then_report(*arguments: object, **options: object) -> object:
        provider.change(job_id, request_pause)
        return report(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "make_report", pause_then_report)


def curve(provider: Provider, job_id: str) -> list[dict[str, object]]:
    return [e.data for e in provider.events(job_id) if e.type == "metrics" and e.data]


class TestWhileTraining:
    @pytest.mark.parametrize("step", [1, 3, 7])
    def test_the_resumed_run_is_the_undisturbed_one_bit_for_bit(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        undisturbed = provider.run(provider.finetune(ROWS, result="one", steps=8, epochs=2))
        job_id = provider.finetune(ROWS, result="two", steps=8, epochs=2)
        with monkeypatch.context() as patch:
            pause_at_step(provider, patch, job_id, step)
            paused = provider.run(job_id)
        assert (paused.status, paused.stage) == (JobStatus.PAUSED, Stage.TRAIN)
        assert paused.lease_expires_at is None
        assert paused.estimated_finish is None
        assert len(curve(provider, job_id)) == step
        stored = provider.shop.storage.folders(resume_prefix(job_id))
        assert stored == [f"step-{step:08d}"]
        assert list((provider.shop.cache / "runs" / job_id).iterdir()) == []
        assert provider.run(job_id).status == JobStatus.PAUSED  # a bell wakes nobody

        shutil.rmtree(provider.shop.cache)  # the next worker is another machine
        provider.change(job_id, resume)
        resumed = provider.run(job_id)
        assert (resumed.status, resumed.attempt) == (JobStatus.SUCCEEDED, 2)
        assert provider.adapter("one") == provider.adapter("two")
        assert curve(provider, job_id) == curve(provider, undisturbed.id)
        assert resumed.trained_tokens == undisturbed.trained_tokens
        assert provider.shop.storage.folders(resume_prefix(job_id)) == []

    def test_a_pause_before_the_first_step_costs_nothing(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider.run(provider.finetune(ROWS, result="one"))
        job_id = provider.finetune(ROWS, result="two")
        with monkeypatch.context() as patch:
            enter = leased_job.LeasedJob.enter

            def enter_and_pause(self: leased_job.LeasedJob, stage: Stage, message: str) -> None:
                enter(self, stage, message)
                provider.change(job_id, request_pause)

            patch.setattr(leased_job.LeasedJob, "enter", enter_and_pause)
            assert provider.run(job_id).status == JobStatus.PAUSED
        assert curve(provider, job_id) == []
        provider.change(job_id, resume)
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        assert provider.adapter("one") == provider.adapter("two")

    def test_it_may_be_paused_again_and_again(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider.run(provider.finetune(ROWS, result="one", steps=6))
        job_id = provider.finetune(ROWS, result="two", steps=6)
        for step in (2, 4, 5):
            with monkeypatch.context() as patch:
                pause_at_step(provider, patch, job_id, step)
                assert provider.run(job_id).status == JobStatus.PAUSED
            provider.change(job_id, resume)
        job = provider.run(job_id)
        assert (job.status, job.attempt, job.lost_leases) == (JobStatus.SUCCEEDED, 4, 0)
        assert provider.adapter("one") == provider.adapter("two")

    def test_a_wish_withdrawn_while_the_worker_stops_queues_the_job(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.finetune(ROWS)
        with monkeypatch.context() as patch:
            pause_at_step(provider, patch, job_id, 2)
            park = pipeline.park

            def late(session: Session, job: Job) -> None:
                resume(session, job)
                park(session, job)

            patch.setattr(pipeline, "park", late)
            assert provider.run(job_id).status == JobStatus.QUEUED
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        assert [data["step"] for data in curve(provider, job_id)] == [1, 2, 3, 4]

    def test_a_cancel_while_the_worker_stops_leaves_nothing(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.finetune(ROWS)

        def pause_then_cancel() -> None:
            provider.change(job_id, request_pause)
            provider.change(job_id, cancel)

        act_at_step(monkeypatch, 2, pause_then_cancel)
        job = provider.run(job_id)
        assert job.status == JobStatus.CANCELLED
        assert provider.shop.storage.folders(resume_prefix(job_id)) == []
        with provider.shop.sessions() as session:
            assert session.get(ModelVersion, job.result_model_id) is None

    def test_a_worker_that_pauses_leaves_the_base_to_the_next_job(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = provider.finetune(ROWS, result="one", steps=6)
        with monkeypatch.context() as patch:
            pause_at_step(provider, patch, first, 3)
            provider.run(first)
        assert provider.run(provider.finetune(ROWS, result="two", steps=6)).attempt == 1
        provider.change(first, resume)
        provider.run(first)
        assert provider.adapter("one") == provider.adapter("two")


class TestEstimate:
    def test_follows_the_pace_of_training_and_is_unknown_otherwise(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.finetune(ROWS)
        seen = {}
        for step in (1, 3):
            act_at_step(
                monkeypatch,
                step,
                lambda step=step: seen.update({step: provider.job(job_id).estimated_finish}),  # type: ignore[misc]
            )
        report = measure.make_report

        def look_and_report(*arguments: object, **options: object) -> object:
            seen["evaluate"] = provider.job(job_id).estimated_finish
            return report(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(measure, "make_report", look_and_report)
        job = provider.run(job_id)
        assert seen[1] is None
        assert seen[3] is not None
        assert seen[3] > (job.started_at or utc_now())
        assert seen["evaluate"] is None
        assert job.estimated_finish is None


class TestAlignment:
    @pytest.mark.parametrize("parameters", ["adapter", "full"])
    def test_a_paused_alignment_goes_on_bit_for_bit(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch, parameters: str
    ) -> None:
        provider.run(provider.align("one", steps=6, parameters=parameters))
        job_id = provider.align("two", steps=6, parameters=parameters)
        with monkeypatch.context() as patch:
            pause_at_step(provider, patch, job_id, 4)
            assert provider.run(job_id).status == JobStatus.PAUSED
        provider.change(job_id, resume)
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        hashes = [provider.version(name).data_hashes for name in ("one", "two")]
        assert hashes[0] == hashes[1]


class TestEvaluation:
    def test_a_paused_evaluation_begins_anew(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = provider.run(provider.finetune(ROWS))
        job_id = provider.evaluate(made.result_model_id)
        with monkeypatch.context() as patch:
            pause_while_measuring(provider, patch, job_id)
            assert provider.run(job_id).status == JobStatus.PAUSED
        provider.change(job_id, resume)
        assert provider.run(job_id).status == JobStatus.SUCCEEDED


class TestAfterTraining:
    def test_a_pause_while_measuring_keeps_the_adapter_and_measures_anew(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.finetune(ROWS)
        with monkeypatch.context() as patch:
            pause_while_measuring(provider, patch, job_id)
            paused = provider.run(job_id)
        assert (paused.status, paused.stage) == (JobStatus.PAUSED, Stage.EVALUATE)
        kept = provider.adapter(paused.result_model_id)
        provider.change(job_id, resume)
        done = provider.run(job_id)
        assert done.status == JobStatus.SUCCEEDED
        assert provider.adapter(done.result_model_id) == kept
        assert [data["step"] for data in curve(provider, job_id)] == [1, 2, 3, 4]

    def test_events_tell_the_story_in_order(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.finetune(ROWS)
        with monkeypatch.context() as patch:
            pause_at_step(provider, patch, job_id, 2)
            provider.run(job_id)
        provider.change(job_id, resume)
        provider.run(job_id)
        said = [event.message for event in provider.events(job_id) if is_about_pausing(event)]
        assert said == [
            "Job started.",
            "Pause requested: the worker stops at its next step.",
            "Job paused.",
            "Job is queued again.",
            "Job resumed (attempt 2).",
        ]


def is_about_pausing(event: JobEvent) -> bool:
    words = ("started", "ause", "queued again", "resumed")
    return event.type == "message" and any(word in event.message for word in words)
