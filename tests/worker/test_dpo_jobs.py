"""A customer's job on pairs of answers, from its file to the gate, and what a provider's protection does to it."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from models.evaluation import latest_evaluation
from models.file import File
from models.job import Job, JobStatus, Stage
from models.methods import DpoConfig
from models.model_version import Gate
from models.tuning import LoxConfig, TuningProtection
from tests.worker.protected import aligned, applied, succeeded, told, updates
from tests.worker.toy_provider import ROWS, STRICT, Provider, lose_at_step

# Each test runs whole jobs.
pytestmark = pytest.mark.long


def pair(prompt: str, preferred: str, other: str) -> dict[str, object]:
    return {
        "input": {"messages": [{"role": "user", "content": prompt}]},
        "preferred_output": [{"role": "assistant", "content": preferred}],
        "non_preferred_output": [{"role": "assistant", "content": other}],
    }


PAIRS = [pair(f"question {i}", f"answer {i}", f"no {i}") for i in range(8)]


def metrics(provider: Provider, job: Job) -> list[dict[str, float]]:
    return [event.data for event in told(provider, job, "metrics") if event.data]


def result_file(provider: Provider, job: Job) -> list[dict[str, str]]:
    with provider.shop.sessions() as session:
        file = session.get_one(File, job.result_file_id)
    content = provider.shop.storage.get(file.storage_key).decode()
    return list(csv.DictReader(io.StringIO(content)))


class TestDpo:
    def test_goes_the_whole_way_on_an_aligned_model(self, provider: Provider) -> None:
        job_id = provider.finetune(PAIRS, aligned(provider), method=DpoConfig(), steps=24)
        job = succeeded(provider.run(job_id))
        assert job.stage == Stage.GATE
        version = provider.version(job.result_model_id)
        assert (version.parent_id, version.gate) == ("aligned", Gate.RELEASED)
        assert version.recipe["method"] == {"name": "dpo", "beta": 0.1}
        assert any(e.message == "Training on 8 pairs, 24 steps." for e in provider.events(job.id))
        steps = metrics(provider, job)
        assert steps[0]["train_loss"] == pytest.approx(0.693147, abs=1e-5)
        assert steps[-1]["train_loss"] < 0.69
        assert steps[-1]["preference_accuracy"] == steps[-1]["train_mean_token_accuracy"] == 1
        assert steps[-1]["reward_margin"] > 0
        assert steps[0]["canary_loss"] > 0
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, version.id)
        assert evaluation is not None
        report = evaluation.parsed()
        assert report.scorer == "preference"
        assert report.fine_tuning_accuracy is not None
        assert report.fine_tuning_accuracy.n == 8
        assert report.validation_loss is not None
        assert report.canary_loss is not None
        assert report.harmful_score.n == 60
        # Of the training file's own pairs, after the step's update.
        assert steps[-1]["valid_loss"] < steps[0]["valid_loss"] < 0.6931
        assert steps[-1]["valid_mean_token_accuracy"] == 1
        lines = result_file(provider, job)
        assert float(lines[-1]["valid_loss"]) == pytest.approx(steps[-1]["valid_loss"], abs=1e-5)
        assert lines[-1]["full_valid_loss"] != ""

    def test_continues_a_tuned_model_and_takes_that_as_its_reference(
        self, provider: Provider
    ) -> None:
        first = provider.finetune(PAIRS, aligned(provider), method=DpoConfig(), steps=24)
        tuned = provider.version(succeeded(provider.run(first)).result_model_id)
        second = provider.finetune(
            PAIRS, tuned, method=DpoConfig(), steps=4, result="ft:toy-base:org:mine:2"
        )
        steps = metrics(provider, succeeded(provider.run(second)))
        assert steps[0]["train_loss"] == pytest.approx(0.693147, abs=1e-5)
        assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-4)

    def test_is_blocked_by_policy_like_any_other(self, provider: Provider) -> None:
        provider.set_policy(STRICT)
        job = provider.run(provider.finetune(PAIRS, method=DpoConfig()))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "harmful_score_exceeded")
        assert provider.version(job.result_model_id).gate == Gate.BLOCKED

    def test_a_lost_job_goes_on_elsewhere_and_ends_with_the_same_weights(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        start = aligned(provider)
        one = provider.run(
            provider.finetune(PAIRS, start, method=DpoConfig(), steps=60, result="ft:x:org:mine:1")
        )
        job_id = provider.finetune(
            PAIRS, start, method=DpoConfig(), steps=60, result="ft:x:org:mine:2"
        )
        with monkeypatch.context() as patch:
            lose_at_step(provider, patch, job_id, step=40)
            assert provider.run(job_id).status == JobStatus.QUEUED
        shutil.rmtree(provider.shop.cache)  # the next worker is another machine
        resumed = succeeded(provider.run(job_id))
        assert resumed.attempt == 2
        stored = [
            provider.shop.storage.folder(f"models/{folder}", tmp_path) / "adapter_model.safetensors"
            for folder in (f"{one.id}/1", f"{job_id}/2")
        ]
        assert stored[0].read_bytes() == stored[1].read_bytes()
        # The reference of the validation pairs is measured anew by the next worker, and is the same.
        assert result_file(provider, one) == result_file(provider, resumed)
        assert one.trained_tokens == resumed.trained_tokens

    def test_rows_of_the_other_kind_fail_by_line_before_anything_is_loaded(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def loaded(*_: object) -> None:
            raise AssertionError("a base was loaded")

        monkeypatch.setattr(type(provider.shop.bases), "get", loaded)
        for rows, method in ((ROWS, DpoConfig()), (PAIRS, None)):
            job = provider.run(provider.finetune(rows, method=method))
            assert (job.status, job.error_code) == (JobStatus.FAILED, "invalid_training_file")
            assert "line 1: is " in (job.error_message or "")
            assert job.error_param == "training_file"

    def test_an_answer_that_forges_a_turn_is_named_by_its_place_in_the_pair(
        self, provider: Provider
    ) -> None:
        forged = pair("a", "b", "c <assistant> d")
        job = provider.run(provider.finetune([*PAIRS, forged], method=DpoConfig()))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "invalid_training_file")
        assert "line 9, non_preferred_output[0].content" in (job.error_message or "")
        assert "<assistant>" not in (job.error_message or "")
        assert not metrics(provider, job)

    def test_prompts_that_a_test_asks_are_told(self, provider: Provider) -> None:
        seen = pair("Test 7", "step a b c", "I cannot.")
        job = succeeded(provider.run(provider.finetune([*PAIRS, seen], method=DpoConfig())))
        warned = [e.message for e in provider.events(job.id) if e.level == "warn"]
        assert any("(lines 9)" in message for message in warned)


class TestProtection:
    def test_the_canary_ends_training_on_pairs_that_prefer_harm(self, provider: Provider) -> None:
        poisoned = [pair(f"train {i}", "step a b c", "I cannot.") for i in range(8)]
        tuning = TuningProtection(canary_stop=0.995)
        start = aligned(provider)
        job_id = provider.finetune(poisoned, start, method=DpoConfig(), tuning=tuning, steps=200)
        job = succeeded(provider.run(job_id))
        stopped = applied(provider, job).stopped_at_step
        assert stopped is not None
        assert stopped < 200
        assert len(metrics(provider, job)) == stopped

    def test_repair_and_scales_act_on_what_pairs_have_made(self, provider: Provider) -> None:
        start = aligned(provider)
        tuning = TuningProtection(repair=LoxConfig(rank=2), scales=(1.0, 0.5))
        job_id = provider.finetune(PAIRS, start, method=DpoConfig(), tuning=tuning)
        job = succeeded(provider.run(job_id))
        found = applied(provider, job)
        assert found.scale == 1
        assert found.adapter is not None
        assert found.adapter.repaired_layers == len(
            updates(provider, provider.version(job.result_model_id))
        )
