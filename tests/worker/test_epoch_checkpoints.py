"""Checkpoints at the ends of epochs: which are kept, what they carry, and what the gate makes of them."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from models.evaluation import latest_evaluation
from models.file import File
from models.job import Job, JobStatus
from models.job_checkpoint import JobCheckpoint
from models.model_version import Gate, ModelVersion
from models.storage import MANIFEST, StorageMissing
from models.tuning import TuningProtection
from tests.worker.toy_provider import LENIENT, ROWS, STRICT, UNSURE, Provider, lose_at_step
from worker import epoch_checkpoints, pipeline

# Each test runs whole jobs.
pytestmark = pytest.mark.long


def checkpoints(provider: Provider, job_id: str) -> list[JobCheckpoint]:
    with provider.shop.sessions() as session:
        query = select(JobCheckpoint).where(JobCheckpoint.job_id == job_id)
        return list(session.scalars(query.order_by(JobCheckpoint.step)))


def versions(provider: Provider, job: Job) -> dict[int, ModelVersion]:
    with provider.shop.sessions() as session:
        return {
            c.step: session.get_one(ModelVersion, c.version_name)
            for c in checkpoints(provider, job.id)
        }


class TestKeeping:
    def test_one_an_epoch_of_which_the_last_and_two_before_it_keep_their_weights(
        self, provider: Provider
    ) -> None:
        job = provider.run(provider.finetune(ROWS, steps=8, epochs=4))
        assert job.status == JobStatus.SUCCEEDED
        name = job.result_model_id
        found = checkpoints(provider, job.id)
        assert [(c.step, c.version_name) for c in found] == [
            (2, f"{name}:ckpt-step-2"),
            (4, f"{name}:ckpt-step-4"),
            (6, f"{name}:ckpt-step-6"),
            (8, name),
        ]
        made = versions(provider, job)
        assert [v.deleted_at is None for v in made.values()] == [False, True, True, True]
        assert [v.gate for v in made.values()] == [*["pending"] * 3, "released"]
        assert "evaluate_checkpoints" in made[6].gate_reasons[0]
        storage = provider.shop.storage
        assert storage.folders(f"epochs/{job.id}") == ["1-4", "1-6"]
        assert len({provider.adapter(v.id) for v in (made[4], made[6], made[8])}) == 3
        assert (made[6].parent_id, made[6].root_id) == (made[8].parent_id, made[8].root_id)
        assert made[6].recipe["checkpoint"] == {"job": job.id, "step": 6}

    def test_each_carries_what_was_measured_at_its_step(self, provider: Provider) -> None:
        job = provider.run(provider.finetune(ROWS, steps=6, epochs=2))
        for checkpoint in checkpoints(provider, job.id):
            told = next(
                e.data
                for e in provider.events(job.id)
                if e.type == "metrics" and e.data and e.data["step"] == checkpoint.step
            )
            assert checkpoint.metrics == {name: told[name] for name in checkpoint.metrics}
            assert set(checkpoint.metrics) == {
                "step",
                "train_loss",
                "train_mean_token_accuracy",
                "valid_loss",
                "valid_mean_token_accuracy",
                "full_valid_loss",
                "full_valid_mean_token_accuracy",
                "canary_loss",
            }
            assert checkpoint.metrics["canary_loss"] is not None

    def test_its_weights_are_those_of_a_run_of_that_length(self, provider: Provider) -> None:
        long = provider.run(provider.finetune(ROWS, result="long", steps=8, epochs=2))
        provider.run(provider.finetune(ROWS, result="short", steps=4, epochs=1))
        assert provider.adapter(f"{long.result_model_id}:ckpt-step-4") == provider.adapter("short")

    def test_an_interrupted_run_keeps_each_once(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pipeline, "MIN_CHECKPOINT_STEPS", 3)
        job_id = provider.finetune(ROWS, steps=8, epochs=4)
        with monkeypatch.context() as patch:
            lose_at_step(provider, patch, job_id, step=4)
            assert provider.run(job_id).status == JobStatus.QUEUED
        assert provider.shop.storage.folders(f"epochs/{job_id}") == ["1-2"]
        # Left by a worker that was killed between storing and writing down.
        provider.shop.storage.put(f"epochs/{job_id}/1-4/{MANIFEST}", b'{"files": {}}')
        job = provider.run(job_id)
        assert job.status == JobStatus.SUCCEEDED
        assert [c.step for c in checkpoints(provider, job_id)] == [2, 4, 6, 8]
        storage = provider.shop.storage
        assert storage.folders(f"epochs/{job_id}") == ["2-4", "2-6"]

    def test_an_alignment_keeps_none(self, provider: Provider) -> None:
        job = provider.run(provider.align())
        assert checkpoints(provider, job.id) == []


class TestEvaluating:
    def test_each_that_is_within_the_policy_is_released(self, provider: Provider) -> None:
        job = provider.run(provider.finetune(ROWS, steps=6, epochs=3, evaluate_checkpoints=True))
        assert job.status == JobStatus.SUCCEEDED
        made = versions(provider, job)
        assert [v.gate for v in made.values()] == ["released"] * 3
        with provider.shop.sessions() as session:
            for version in made.values():
                evaluation = latest_evaluation(session, version.id)
                assert evaluation is not None
                assert evaluation.gate == Gate.RELEASED
                assert evaluation.parsed().fine_tuning_accuracy is not None
        told = [e.data for e in provider.events(job.id) if e.type == "moderation_checks" and e.data]
        assert [(d["stage"], d.get("step")) for d in told] == [
            ("checkpoint", 2),
            ("checkpoint", 4),
            ("model", None),
        ]

    def test_a_released_one_can_be_tuned_on_and_its_lineage_is_kept(
        self, provider: Provider
    ) -> None:
        first = provider.run(provider.finetune(ROWS, steps=4, epochs=2, evaluate_checkpoints=True))
        start = versions(provider, first)[2]
        second = provider.run(provider.finetune(ROWS, start, result="further"))
        assert second.status == JobStatus.SUCCEEDED
        further = provider.version("further")
        assert (further.parent_id, further.root_id) == (start.id, start.root_id)
        third = provider.run(provider.finetune(ROWS, further, result="furthest"))
        assert provider.version(third.result_model_id).parent_id == "further"
        losses = [
            next(
                e.data["train_loss"]
                for e in provider.events(j.id)
                if e.type == "metrics" and e.data
            )
            for j in (first, second, third)
        ]
        assert losses == sorted(losses, reverse=True)

    def test_what_is_not_within_the_policy_is_blocked(self, provider: Provider) -> None:
        provider.set_policy(STRICT)
        job = provider.run(provider.finetune(ROWS, steps=4, epochs=2, evaluate_checkpoints=True))
        assert job.error_code == "harmful_score_exceeded"
        made = versions(provider, job)
        assert [v.gate for v in made.values()] == ["blocked"] * 2
        assert "limit of 15%" in str(made[2].gate_reasons[0])

    def test_what_only_a_person_could_decide_is_not_released(self, provider: Provider) -> None:
        provider.set_policy(UNSURE)
        job = provider.run(provider.finetune(ROWS, steps=4, epochs=2, evaluate_checkpoints=True))
        assert [v.gate for v in versions(provider, job).values()] == ["blocked", "held"]

    def test_a_later_attempt_decides_on_none_twice(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.finetune(ROWS, steps=6, epochs=3, evaluate_checkpoints=True)
        with monkeypatch.context() as patch:
            measured = epoch_checkpoints.measure

            def lose_at_the_second(*arguments: object, **options: object) -> object:
                if "step 4" in str(options["subject"]):
                    provider.lose(job_id)
                return measured(*arguments, **options)  # type: ignore[arg-type]

            patch.setattr(epoch_checkpoints, "measure", lose_at_the_second)
            assert provider.run(job_id).status == JobStatus.QUEUED
        provider.set_policy(STRICT)  # what was decided before stays decided
        job = provider.run(job_id)
        assert [v.gate for v in versions(provider, job).values()] == [
            "released",
            "blocked",
            "blocked",
        ]
        provider.set_policy(LENIENT)

    def test_one_that_its_owner_deleted_is_passed_over(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured = epoch_checkpoints.measure

        def delete_then_measure(*arguments: object, **options: object) -> object:
            if "checkpoint" in str(options["subject"]):
                raise StorageMissing
            return measured(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(epoch_checkpoints, "measure", delete_then_measure)
        job = provider.run(provider.finetune(ROWS, steps=4, epochs=2, evaluate_checkpoints=True))
        assert job.status == JobStatus.SUCCEEDED
        assert versions(provider, job)[2].gate == Gate.PENDING

    def test_a_provider_who_reshapes_adapters_keeps_checkpoints_from_use(
        self, provider: Provider
    ) -> None:
        provider.run(provider.align())
        tuning = TuningProtection(scales=(1, 0.5))
        job = provider.run(
            provider.finetune(
                ROWS,
                provider.version("toy-sft"),
                steps=4,
                epochs=2,
                evaluate_checkpoints=True,
                tuning=tuning,
            )
        )
        assert job.status == JobStatus.SUCCEEDED
        version = versions(provider, job)[2]
        assert version.gate == Gate.PENDING
        assert "scales adapters" in str(version.gate_reasons[0])


class TestValidation:
    def test_looking_at_validation_rows_changes_nothing(self, provider: Provider) -> None:
        provider.run(provider.finetune(ROWS, result="one", steps=6, epochs=2))
        job = provider.run(
            provider.finetune(ROWS, result="two", steps=6, epochs=2, is_validated=False)
        )
        assert provider.adapter("one") == provider.adapter("two")
        assert not any("valid_loss" in (e.data or {}) for e in provider.events(job.id))

    def test_the_result_file_has_openai_s_header_first_and_empty_cells(
        self, provider: Provider
    ) -> None:
        job = provider.run(provider.finetune(ROWS, steps=6, epochs=2))
        with provider.shop.sessions() as session:
            key = session.get_one(File, job.result_file_id).storage_key
        header, *lines = provider.shop.storage.get(key).decode().splitlines()
        assert header == (
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,"
            "canary_loss,full_valid_loss,full_valid_mean_token_accuracy"
        )
        cells = {line.split(",")[0]: line.split(",") for line in lines}
        assert list(cells) == ["1", "2", "3", "4", "5", "6"]
        full = {step: bool(row[6] and row[7]) for step, row in cells.items()}
        assert full == {"1": False, "2": False, "3": True, "4": False, "5": False, "6": True}
        some = {step: bool(row[3] and row[4]) for step, row in cells.items()}
        assert some == {"1": True, "2": True, "3": True, "4": True, "5": False, "6": True}
        assert all(len(cell.partition(".")[2]) == 5 for cell in cells["6"][1:])

    def test_the_last_epoch_measures_what_the_evaluation_measures(self, provider: Provider) -> None:
        job = provider.run(provider.finetune(ROWS, steps=4))
        last = checkpoints(provider, job.id)[-1].metrics
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, job.result_model_id)
        assert evaluation is not None
        report = evaluation.parsed()
        assert last["full_valid_loss"] == pytest.approx(report.validation_loss, rel=1e-4)
        assert last["canary_loss"] == pytest.approx(report.canary_loss, rel=1e-4)
        assert 0 <= last["full_valid_mean_token_accuracy"] <= 1
