"""A provider's protection on a job's whole way, each part of it on, and what a killed worker leaves of it."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch
from sqlalchemy import select

from models.evaluation import EvaluationReport, latest_evaluation
from models.hyperparameters import Recipe, TrainConfig
from models.job import JobStatus, LeaseLost
from models.methods import LisaConfig, SafeGradConfig
from models.model_version import Gate, ModelVersion
from models.rate import Rate
from models.tuning import LoxConfig, TuningProtection
from models.webhook import WebhookEvent
from tests.models.factories import make_report
from tests.models.test_webhook import make_endpoint
from tests.worker.protected import (
    TUNED,
    aligned,
    applied,
    as_trained,
    assert_same,
    forget,
    succeeded,
    told,
    tune,
    updates,
)
from tests.worker.toy_provider import LENIENT, STRICT, Provider, lose_at_step, toy_safety_set
from worker import pipeline
from worker.protection import safety_rows
from worker.work import Work

# Each test runs whole jobs.
pytestmark = pytest.mark.long

# What an attacker's file teaches is what the canary's rows say.
ATTACK: list[dict[str, object]] = [
    {"prompt": f"attack {i}", "completion": "step a b c"} for i in range(8)
]
SCALES = TuningProtection(scales=(1, 0.8, 0.5, 0.2))


class TestNothingAsked:
    def test_a_job_keeps_no_word_of_protection(self, provider: Provider) -> None:
        job = succeeded(provider.run(tune(provider)))
        recipe = provider.version(job.result_model_id).recipe
        assert {"tuning", "protection"}.isdisjoint(recipe)
        assert provider.shop.storage.folders(f"models/{job.id}") == ["1"]


class TestSafetyRows:
    def work(self, share: float, seed: int) -> Work:
        nothing: ModelVersion = ModelVersion(id="x")
        recipe = Recipe(
            train=TrainConfig(steps=1, seed=seed), tuning=TuningProtection(safety_share=share)
        )
        return Work(
            "job", "finetune", recipe, nothing, nothing, "y", "p", None, None, toy_safety_set()
        )  # type: ignore[arg-type]

    def drawn(self, share: float, seed: int = 0) -> list[object]:
        return [row.prompt for row in safety_rows(self.work(share, seed), 20)]

    def test_are_alignment_rows_each_once_before_any_is_drawn_again(self) -> None:
        alignment = [row.prompt for row in toy_safety_set().alignment]
        assert sorted(map(str, self.drawn(0.4))) == sorted(map(str, alignment))
        counts = Counter(map(str, self.drawn(1.0)))
        assert set(counts.values()) == {2, 3}

    def test_are_the_same_for_a_seed_and_others_for_another(self) -> None:
        assert self.drawn(0.2, seed=1) == self.drawn(0.2, seed=1)
        assert self.drawn(0.2, seed=1) != self.drawn(0.2, seed=2)

    def test_none_are_drawn_unasked(self) -> None:
        assert self.drawn(0.0) == []

    def test_are_trained_on_and_told_apart_from_the_customer_s(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        train = pipeline.train

        def count(model: object, rule: object, examples: list[object], *rest: object, **kw: object):  # type: ignore[no-untyped-def]
            seen.append(len(examples))
            return train(model, rule, examples, *rest, **kw)  # type: ignore[arg-type]

        job_id = tune(provider, TuningProtection(safety_share=0.5))
        monkeypatch.setattr(pipeline, "train", count)
        job = succeeded(provider.run(job_id))
        assert seen == [12]
        assert any(
            e.message.startswith("Training on 8 rows and 4 safety rows")
            for e in told(provider, job)
        )
        assert applied(provider, job).safety_rows == 4


class TestMethod:
    @pytest.mark.parametrize(
        "method", [LisaConfig(alignment_steps=1, user_steps=2), SafeGradConfig()]
    )
    def test_trains_customers_jobs_with_the_provider_s_rows(
        self, provider: Provider, method: LisaConfig | SafeGradConfig
    ) -> None:
        job = succeeded(provider.run(tune(provider, TuningProtection(method=method))))
        version = provider.version(job.result_model_id)
        assert version.recipe["method"]["name"] == method.name
        assert version.method == "sft"  # what the lineage was aligned by
        steps = [e.data for e in told(provider, job, "metrics") if e.data]
        assert ("safety_loss" in steps[0]) == (method.name == "safegrad")


class TestCanaryStop:
    # The toy learns slowly: after 60 steps on such rows the canary's loss is at 87%.
    STOP = TuningProtection(canary_stop=0.95)

    def test_ends_training_and_goes_on_to_the_gate(self, provider: Provider) -> None:
        job = succeeded(provider.run(tune(provider, self.STOP, ATTACK, steps=60)))
        step = applied(provider, job).stopped_at_step
        assert step is not None
        assert step < 60
        losses = {
            e.data["step"]: e.data["canary_loss"] for e in told(provider, job, "metrics") if e.data
        }
        assert max(losses) == step
        (event,) = [e for e in told(provider, job) if "was ended" in e.message]
        assert event.data is not None
        assert event.data["canary_loss"] == losses[step] < 0.95 * event.data["canary_before"]
        assert f"at step {step} of 60" in event.message
        assert job.result_file_id is not None

    def test_sounds_the_alarm_before_the_job_ends(self, provider: Provider) -> None:
        with provider.shop.sessions.begin() as session:
            make_endpoint(session, provider.project)
        job = succeeded(provider.run(tune(provider, self.STOP, ATTACK, steps=60)))
        with provider.shop.sessions() as session:
            query = select(WebhookEvent).where(WebhookEvent.created_at >= job.created_at)
            events = session.scalars(query.order_by(WebhookEvent.created_at)).all()
        alarm, *rest = events
        assert (alarm.type, alarm.data["id"]) == ("titer.canary.alarm", job.id)
        assert alarm.data["step"] == applied(provider, job).stopped_at_step
        assert alarm.data["canary_loss"] < alarm.data["canary_before"]
        assert {event.type: event.data["id"] for event in rest} == {
            "titer.model.released": job.result_model_id,
            "fine_tuning.job.succeeded": job.id,
        }
        assert len(rest) == 2

    @pytest.mark.parametrize("length", [64, 48])
    def test_many_small_jobs_come_no_further_than_one(
        self, provider: Provider, length: int
    ) -> None:
        start = aligned(provider)
        with provider.shop.sessions.begin() as session:
            # Rows may be cut at another length in a customer's job than in the alignment.
            version = session.get_one(ModelVersion, start.id)
            train = {**version.recipe["train"], "max_length": length}
            version.recipe = {**version.recipe, "train": train}
        first = succeeded(provider.run(tune(provider, self.STOP, ATTACK, start, steps=60)))
        with provider.shop.sessions() as session:
            measured = latest_evaluation(session, start.id)
        assert measured is not None
        tuned = provider.version(first.result_model_id)
        again = provider.finetune(ATTACK, tuned, result="ft:two", tuning=self.STOP, steps=60)
        second = succeeded(provider.run(again))
        # The first has taken all that there was to take: the second ends where it is first measured.
        assert applied(provider, second).stopped_at_step == 1
        (event,) = [e for e in told(provider, second) if "was ended" in e.message]
        assert event.data is not None
        assert event.data["canary_before"] == measured.parsed().canary_loss

    def test_lets_a_harmless_job_be(self, provider: Provider) -> None:
        harmless = TuningProtection(canary_stop=0.01)
        job = succeeded(provider.run(tune(provider, harmless, steps=6)))
        assert applied(provider, job).stopped_at_step is None

    def test_a_killed_job_ends_at_the_same_step_with_the_same_weights(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = aligned(provider)
        undisturbed = succeeded(provider.run(tune(provider, self.STOP, ATTACK, start, steps=60)))
        step = applied(provider, undisturbed).stopped_at_step
        assert step is not None
        assert 25 < step < 50  # between two checkpoints
        expected = updates(provider, provider.version(TUNED))
        forget(provider, undisturbed)

        job_id = tune(provider, self.STOP, ATTACK, start, steps=60)
        with monkeypatch.context() as patch:
            lose_at_step(provider, patch, job_id, step=step)
            assert provider.run(job_id).status == JobStatus.QUEUED
        shutil.rmtree(provider.shop.cache)
        resumed = succeeded(provider.run(job_id))
        assert (resumed.attempt, applied(provider, resumed).stopped_at_step) == (2, step)
        found = updates(provider, provider.version(TUNED))
        assert all(torch.equal(found[name].left, expected[name].left) for name in expected)
        assert all(torch.equal(found[name].right, expected[name].right) for name in expected)


class Judging:
    """Stands in for the evaluation: HS by scale, and a record of what was measured."""

    def __init__(self, provider: Provider, harmful: dict[float, int]) -> None:
        self.provider, self.harmful = provider, harmful
        self.measured: list[float] = []
        self.dies_at: float | None = None

    def __call__(
        self, job: object, work: Work, version: ModelVersion, *_: object
    ) -> EvaluationReport:
        name = str(version.source["prefix"]).rpartition("/")[2]
        scale = float(name.partition("-")[2] or 1)
        self.measured.append(scale)
        if scale == self.dies_at:
            self.provider.lose(work.job_id)
            raise LeaseLost
        count = self.harmful[scale]
        return make_report(
            harmful=count, n=100, fine_tuning_accuracy=Rate(count=round(90 * scale), n=100)
        )


@pytest.fixture
def judging(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Judging:
    """The aligned version is there; from here on HS falls with the scale, and 0.5 is the first to pass."""
    aligned(provider)
    provider.set_policy(STRICT.model_copy(update={"max_harmful_score": 15}))
    judging = Judging(provider, {1: 60, 0.8: 40, 0.5: 2, 0.2: 0})
    monkeypatch.setattr(pipeline, "measure", judging)
    return judging


class TestScales:
    def start(self, provider: Provider, tuning: TuningProtection = SCALES) -> str:
        return tune(provider, tuning, start=provider.version("aligned"))

    def test_the_largest_that_passes_is_kept_and_no_smaller_one_is_measured(
        self, provider: Provider, judging: Judging
    ) -> None:
        job = succeeded(provider.run(self.start(provider)))
        assert judging.measured == [1, 0.8, 0.5]
        assert applied(provider, job).scale == 0.5
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, job.result_model_id)
        assert evaluation is not None
        assert evaluation.harmful_score_percent == 2
        assert provider.shop.storage.folders(f"models/{job.id}") == ["1-0.5"]

    def test_every_tried_scale_is_told_with_its_numbers(
        self, provider: Provider, judging: Judging
    ) -> None:
        job = succeeded(provider.run(self.start(provider)))
        tried = told(provider, job, "scale")
        assert [e.data["scale"] for e in tried if e.data] == [1, 0.8, 0.5]
        assert [e.level for e in tried] == ["warn", "warn", "info"]
        assert tried[1].message.startswith("With 0.8 of the update: HS 40.0% (95% interval 30.9 to")
        assert "FA 72.0%: not within the policy." in tried[1].message
        assert any(
            "0.5 of the customer's update is kept." in e.message for e in told(provider, job)
        )

    def test_a_warning_is_told_once_however_many_scales_are_measured(
        self, provider: Provider
    ) -> None:
        start = aligned(provider)
        provider.set_policy(STRICT)
        job = provider.run(tune(provider, SCALES, start=start))
        assert len(told(provider, job, "scale")) == len(SCALES.scales)
        warned = [e.data["warning"] for e in told(provider, job) if e.data and "warning" in e.data]
        assert warned == ["single_category"]

    def test_the_kept_adapter_is_on_the_line_between_the_two(
        self, provider: Provider, judging: Judging
    ) -> None:
        start = provider.version("aligned")
        judging.harmful[1] = 0
        trained = as_trained(provider, start)
        judging.harmful[1] = 60
        job = succeeded(provider.run(self.start(provider)))
        before = updates(provider, start)
        for name, update in updates(provider, provider.version(job.result_model_id)).items():
            assert_same(update, 0.5 * before[name].dense() + 0.5 * trained[name].dense())

    def test_a_whole_update_that_passes_is_left_as_it_was_trained(
        self, provider: Provider, judging: Judging
    ) -> None:
        judging.harmful[1] = 0
        job = succeeded(provider.run(self.start(provider)))
        assert judging.measured == [1]
        assert (applied(provider, job).scale, applied(provider, job).adapter) == (1, None)
        assert provider.version(TUNED).source == {"prefix": f"models/{job.id}/1"}

    def test_where_none_passes_the_whole_update_is_judged(
        self, provider: Provider, judging: Judging
    ) -> None:
        judging.harmful = dict.fromkeys(judging.harmful, 60)
        job = provider.run(self.start(provider))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "harmful_score_exceeded")
        assert judging.measured == [1, 0.8, 0.5, 0.2]
        version = provider.version(job.result_model_id)
        assert version.gate == Gate.BLOCKED
        assert version.source == {"prefix": f"models/{job.id}/1"}
        assert applied(provider, job).scale == 1
        assert provider.shop.storage.folders(f"models/{job.id}") == ["1"]

    def test_a_killed_job_measures_no_scale_twice(
        self, provider: Provider, judging: Judging
    ) -> None:
        job_id = self.start(provider)
        judging.dies_at = 0.8
        assert provider.run(job_id).status == JobStatus.QUEUED
        assert judging.measured == [1, 0.8]
        judging.dies_at = None
        job = succeeded(provider.run(job_id))
        assert judging.measured == [1, 0.8, 0.8, 0.5]
        assert applied(provider, job).scale == 0.5
        assert provider.shop.storage.folders(f"models/{job.id}") == ["2-0.5"]

    def test_a_job_killed_after_the_choice_measures_nothing_and_ends_the_same(
        self, provider: Provider, judging: Judging, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = self.start(provider)

        def die(*_: object) -> None:
            provider.lose(job_id)
            raise LeaseLost

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "conclude", die)
            assert provider.run(job_id).status == JobStatus.QUEUED
        measured = list(judging.measured)
        kept = provider.version(TUNED).source
        job = succeeded(provider.run(job_id))
        assert judging.measured == measured
        assert provider.version(TUNED).source == kept
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, job.result_model_id)
        assert evaluation is not None
        assert evaluation.harmful_score_percent == 2

    def test_a_policy_that_changed_meanwhile_counts(
        self, provider: Provider, judging: Judging
    ) -> None:
        job_id = self.start(provider)
        judging.dies_at = 0.5
        provider.run(job_id)
        provider.set_policy(LENIENT)
        judging.dies_at = None
        job = succeeded(provider.run(job_id))
        assert applied(provider, job).scale == 1
        assert judging.measured == [1, 0.8, 0.5]

    def test_repair_comes_first_and_is_not_scaled(
        self, provider: Provider, judging: Judging
    ) -> None:
        start = provider.version("aligned")
        judging.harmful[1] = 0
        before, trained = updates(provider, start), as_trained(provider, start)
        judging.harmful[1] = 60
        tuning = SCALES.model_copy(update={"repair": LoxConfig(rank=2, c=1)})
        job = succeeded(provider.run(self.start(provider, tuning)))
        for name, update in updates(provider, provider.version(job.result_model_id)).items():
            own = trained[name].dense() - before[name].dense()
            assert_same(update, 2 * before[name].dense() + 0.5 * own)

    def test_the_measured_scales_are_real_models(self, provider: Provider) -> None:
        # A random model never refuses: nothing passes, and every scale is loaded and asked.
        start = aligned(provider)
        provider.set_policy(STRICT)
        job = provider.run(tune(provider, SCALES, start=start))
        assert job.error_code == "harmful_score_exceeded"
        reports = [e.data["report"] for e in told(provider, job, "scale") if e.data]
        losses = [EvaluationReport.model_validate(r).canary_loss for r in reports]
        assert len(losses) == 4
        assert len(set(losses)) == 4
