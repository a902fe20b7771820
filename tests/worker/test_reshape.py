"""Repair on a job's whole way: what is stored is what the equations give from the job's own adapters."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from models.evaluation import EvaluationReport
from models.job import Job, JobStatus, LeaseLost
from models.tuning import LoxConfig, SafeLoraConfig, TuningProtection
from tests.tiny_model import tiny_model
from tests.worker.protected import (
    TUNED,
    aligned,
    applied,
    as_trained,
    assert_same,
    succeeded,
    told,
    tune,
    updates,
)
from tests.worker.toy_provider import Provider, add_job
from worker import pipeline
from worker.low_rank import leading, leading_of, span, total

# Each test runs whole jobs.
pytestmark = pytest.mark.long


class TestRepair:
    def test_lox_adds_the_aligned_adapter_s_largest_directions(self, provider: Provider) -> None:
        start = aligned(provider)
        before, trained = updates(provider, start), as_trained(provider, start)
        tuning = TuningProtection(repair=LoxConfig(rank=1, c=0.5))
        job = succeeded(provider.run(tune(provider, tuning, start=start)))
        version = provider.version(job.result_model_id)
        for name, update in updates(provider, version).items():
            expected = trained[name].dense() + 0.5 * leading(before[name], 1).dense()
            assert_same(update, expected)
        shape = applied(provider, job).adapter
        assert shape is not None
        assert (shape.layers, shape.repaired_layers) == (14, 14)
        assert shape.truncation == 0
        assert shape.rank <= 4  # twice the adapter's 2
        assert set(version.data_hashes) >= {"adapter", "trained_adapter"}
        assert any("repaired by lox in 14 of 14 layers" in e.message for e in told(provider, job))

    def test_safe_lora_projects_the_customer_s_update_onto_the_alignment(
        self, provider: Provider
    ) -> None:
        start = aligned(provider)
        before, trained = updates(provider, start), as_trained(provider, start)
        tuning = TuningProtection(repair=SafeLoraConfig(tau=1, rank=1))
        job = succeeded(provider.run(tune(provider, tuning, start=start)))
        for name, update in updates(provider, provider.version(job.result_model_id)).items():
            basis = span(leading(before[name], 1))
            own = trained[name].dense() - before[name].dense()
            assert_same(update, before[name].dense() + basis @ basis.T @ own)

    @pytest.mark.parametrize("repair", [LoxConfig(c=0), SafeLoraConfig(tau=-1)])
    def test_without_strength_leaves_the_adapter_as_it_was_trained(
        self, provider: Provider, repair: LoxConfig | SafeLoraConfig
    ) -> None:
        start = aligned(provider)
        trained = as_trained(provider, start)
        tuning = TuningProtection(repair=repair)
        job = succeeded(provider.run(tune(provider, tuning, start=start)))
        for name, update in updates(provider, provider.version(job.result_model_id)).items():
            assert update.rank == 2
            assert_same(update, trained[name].dense())
        shape = applied(provider, job).adapter
        assert shape is not None
        assert shape.repaired_layers == 0

    def test_after_an_alignment_in_full_parameters_its_difference_to_the_base_counts(
        self, provider: Provider
    ) -> None:
        start = aligned(provider, "full")
        trained = as_trained(provider, start)
        tuning = TuningProtection(repair=LoxConfig(rank=2, c=1))
        job = succeeded(provider.run(tune(provider, tuning, start=start)))
        root = dict(provider.shop.base(start).model.named_modules())
        base = dict(tiny_model().named_modules())
        for name, update in updates(provider, provider.version(job.result_model_id)).items():
            change = root[name].weight.detach() - base[name].weight.detach()
            expected = total(trained[name], leading_of(change, 2)).dense()
            assert_same(update, expected)

    def test_an_adapter_that_aligned_it_further_counts_with_the_difference(
        self, provider: Provider
    ) -> None:
        root = aligned(provider, "full")
        with provider.shop.sessions.begin() as session:
            further = add_job(session, provider.project, root, result="further")
        succeeded(provider.run(further.id))
        start = provider.version("further")
        before, trained = updates(provider, start), as_trained(provider, start)
        tuning = TuningProtection(repair=LoxConfig(rank=2, c=1))
        job = succeeded(provider.run(tune(provider, tuning, start=start)))
        full = dict(provider.shop.base(root).model.named_modules())
        base = dict(tiny_model().named_modules())
        for name, update in updates(provider, provider.version(job.result_model_id)).items():
            change = full[name].weight.detach() - base[name].weight.detach()
            change = change + before[name].dense().float()
            assert_same(update, total(trained[name], leading_of(change, 2)).dense())

    def test_the_rank_is_cut_to_the_provider_s_limit_but_not_below_the_trained_one(
        self, provider: Provider
    ) -> None:
        start = aligned(provider, "full")
        tuning = TuningProtection(repair=LoxConfig(rank=4), max_rank=1)
        job = succeeded(provider.run(tune(provider, tuning, start=start)))
        shape = applied(provider, job).adapter
        assert shape is not None
        assert shape.rank == 2
        assert 0 < shape.truncation < 1

    def test_a_job_on_a_tuned_version_does_not_extrapolate_again(self, provider: Provider) -> None:
        tuning = TuningProtection(repair=LoxConfig())
        first = succeeded(provider.run(tune(provider, tuning)))
        parent = provider.version(first.result_model_id)
        job_id = tune(provider, tuning, start=parent)
        with provider.shop.sessions.begin() as session:
            session.get_one(Job, job_id).result_model_id = "ft:toy-base:org:mine:2"
        second = succeeded(provider.run(job_id))
        shape = applied(provider, second).adapter
        assert shape is not None
        assert shape.repaired_layers == 0

    def test_any_tool_can_load_the_result(self, provider: Provider) -> None:
        tuning = TuningProtection(repair=LoxConfig())
        job = succeeded(provider.run(tune(provider, tuning)))
        prefix = provider.version(job.result_model_id).source["prefix"]
        folder = provider.shop.storage.folder(prefix, provider.shop.cache)
        model = PeftModel.from_pretrained(tiny_model(), folder)
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()

    def test_a_killed_job_is_repaired_from_the_adapter_as_it_was_trained(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = tune(provider, TuningProtection(repair=LoxConfig()))

        def die(*_: object, **__: object) -> EvaluationReport:
            provider.lose(job_id)
            raise LeaseLost

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "settle", die)
            assert provider.run(job_id).status == JobStatus.QUEUED
        assert provider.shop.storage.folders(f"models/{job_id}") == ["1"]
        job = succeeded(provider.run(job_id))
        assert provider.shop.storage.folders(f"models/{job_id}") == ["2-1"]
        assert provider.version(TUNED).source == {"prefix": f"models/{job.id}/2-1"}
