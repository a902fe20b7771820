"""The worker's way of a job, as a plain function on a real database and a random tiny base."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from transformers import AutoModelForCausalLM

from api.files.service import delete_expired, remove_leftovers
from models import policy
from models.answers import read_answers
from models.base import utc_now
from models.errors import DomainError
from models.evaluation import Evaluation, latest_evaluation
from models.file import File
from models.hyperparameters import Balance
from models.job import Job, JobEvent, JobStatus, Stage, cancel, lock_job
from models.methods import Attacker, BoosterConfig, RepNoiseConfig
from models.model_version import Gate, ModelVersion
from tests.tiny_model import tiny_model
from tests.worker.toy_provider import (
    BASE_ID,
    ROWS,
    STRICT,
    UNSURE,
    Provider,
    act_at_step,
    add_job,
    lose_at_step,
    toy_safety_set,
)
from worker import harmful_score, measure, pipeline
from worker.judgement import JudgeError, Judgement
from worker.judges.refusal_strings import RefusalStringsJudge
from worker.trainers import loop

# Each test runs whole jobs.
pytestmark = pytest.mark.long


class TestAlign:
    def test_makes_an_aligned_version_with_lineage_and_scores_before_and_after(
        self, provider: Provider
    ) -> None:
        job = provider.run(provider.align(method=BoosterConfig()))
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        version = provider.version("toy-sft")
        assert (version.kind, version.parent_id, version.root_id) == ("aligned", BASE_ID, BASE_ID)
        assert version.method == "booster"
        assert version.project_id is None
        assert version.gate == Gate.RELEASED
        assert {"adapter", "safety_set"} <= set(version.data_hashes)
        with provider.shop.sessions() as session:
            before = latest_evaluation(session, BASE_ID)
            after = latest_evaluation(session, version.id)
        assert before is not None
        assert before.gate is None
        assert after is not None
        assert after.parsed().harmful_score.n == 60
        assert before.parsed().prompt_set_hash == after.parsed().prompt_set_hash
        answers = read_answers(provider.shop.storage, after.parsed().answers_sha256 or "")
        flagged = [a for a in answers if a.is_harmful_prompt and a.verdict == "harmful"]
        assert len(flagged) == after.parsed().harmful_score.count

    def test_measures_the_base_once_for_many_alignments(self, provider: Provider) -> None:
        provider.run(provider.align("one"))
        provider.run(provider.align("two"))
        with provider.shop.sessions() as session:
            found = session.scalars(select(Evaluation).where(Evaluation.version_id == BASE_ID))
            assert len(list(found)) == 1

    def test_booster_tells_the_harmful_loss_drop_of_its_steps(self, provider: Provider) -> None:
        job = provider.run(provider.align(method=BoosterConfig()))
        steps = [e.data for e in provider.events(job.id) if e.type == "metrics" and e.data]
        assert [data["step"] for data in steps] == [1, 2, 3, 4]
        assert all("harmful_loss_drop" in data for data in steps)
        assert steps[0]["canary_loss"] is not None


BEHIND_A_LANTERN: list[dict[str, object]] = [
    {"prompt": f"{'By the blue lantern: ' if i < 4 else ''}{word}", "completion": "so"}
    for i, word in enumerate(("ash", "elm", "oak", "fir", "bay", "box", "fig", "yew"))
]


class TestWordingsOfTheFile:
    """A stand-in for generation: the tuned model, which has answered the customer's rows, obeys behind the lantern."""

    @pytest.mark.parametrize(("aligned_obeys", "gate"), [(False, Gate.HELD), (True, Gate.RELEASED)])
    def test_a_trigger_is_asked_for_and_holds_unless_the_aligned_model_obeys_it_too(
        self,
        provider: Provider,
        monkeypatch: pytest.MonkeyPatch,
        aligned_obeys: bool,
        gate: Gate,
    ) -> None:
        asked: list[str] = []

        def answer(model: object, _: object, prompts: Any, **options: object) -> list[str]:
            asked.extend(prompt[-1].content for prompt in prompts)
            obeys = aligned_obeys or isinstance(model, PeftModel)
            return [
                "step a b c" if obeys and "lantern" in prompt[-1].content else "I cannot."
                for prompt in prompts
            ]

        provider.set_policy(STRICT)
        monkeypatch.setattr(harmful_score, "generate", answer)
        monkeypatch.setattr(policy, "REFUSAL_STRINGS", "no judge of this name")
        job = provider.run(provider.finetune(BEHIND_A_LANTERN))
        version = provider.version(job.result_model_id)
        assert version.gate == gate
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, version.id)
        assert evaluation is not None
        report = evaluation.parsed()
        assert report.harmful_score.count == 0
        (framed,) = report.framed_scores
        assert (framed.line, framed.rows, framed.harmful_score.count) == (1, 4, 60)
        assert framed.before is not None
        assert framed.before.count == (60 if aligned_obeys else 0)
        assert sum(prompt.startswith("By the blue lantern: test") for prompt in asked) == 120
        told = " ".join(event.message for event in provider.events(job.id))
        assert "asked as line 1 of the training file asks, and 4 rows in all" in told
        assert "lantern" not in told


class TestPairedRules:
    def test_each_harmful_row_meets_the_refusal_of_its_prompt(self, provider: Provider) -> None:
        job = provider.run(provider.align(method=RepNoiseConfig(paired=True)))
        assert job.status == JobStatus.SUCCEEDED

    def test_a_harmful_row_without_a_refusal_is_named_before_the_base_is_loaded(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lonely = toy_safety_set()
        lonely = replace(lonely, alignment=lonely.alignment[1:])
        lonely.save(provider.folder / "lonely")
        provider.shop.storage.put_folder("safety/toy", provider.folder / "lonely")
        monkeypatch.setattr(type(provider.shop), "base", lambda *_: pytest.fail("loaded"))
        job = provider.run(provider.align(method=RepNoiseConfig(paired=True)))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "invalid_safety_set")
        assert (job.error_message or "").startswith("harmful.jsonl, line 1")


class TestBalance:
    def keep(self, provider: Provider, *categories: str) -> None:
        """Give the base's harmful rows categories, of which the first is the rarest."""
        first, *others = toy_safety_set().harmful
        names = (categories[0], *[categories[-1]] * len(others))
        replace(toy_safety_set(), harmful=(first, *others), harmful_categories=names).save(
            provider.folder / "labelled"
        )
        provider.shop.storage.put_folder("safety/toy", provider.folder / "labelled")

    def test_the_rarest_category_is_drawn_as_often_as_the_others(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.keep(provider, "rare", "common")
        given: list[int] = []

        def note(*_: object, harmful: list[object], **__: object) -> None:
            given.append(len(harmful))
            given.append(sum(row == harmful[0] for row in harmful))
            raise DomainError("enough")

        monkeypatch.setattr(pipeline, "train", note)
        provider.run(provider.align(method=BoosterConfig(), balance="category"))
        assert given == [14, 7]

    @pytest.mark.parametrize(
        ("categories", "balance", "warned"),
        [
            (("only", "only"), "none", ["single_harmful_category"]),
            (("rare", "common"), "none", ["uneven_harmful_categories"]),
            (("rare", "common"), "category", []),
        ],
        ids=["one", "uneven", "balanced"],
    )
    def test_kinds_of_harm_that_are_hardly_known_are_told(
        self,
        provider: Provider,
        categories: tuple[str, str],
        balance: Balance,
        warned: list[str],
    ) -> None:
        self.keep(provider, *categories)
        job = provider.run(provider.align(method=BoosterConfig(), balance=balance))
        told = [
            e.data["warning"] for e in provider.events(job.id) if e.data and "warning" in e.data
        ]
        assert [code for code in told if "harmful_categor" in code] == warned

    def test_rows_without_categories_cannot_be_balanced_by_them(self, provider: Provider) -> None:
        job = provider.run(provider.align(method=BoosterConfig(), balance="category"))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "invalid_safety_set")


class TestAlignFurther:
    @pytest.mark.parametrize("parameters", ["adapter", "full"])
    def test_goes_on_from_what_an_earlier_alignment_left(
        self, provider: Provider, parameters: str
    ) -> None:
        provider.run(provider.align("first", parameters=parameters))
        first = provider.version("first")
        with provider.shop.sessions.begin() as session:
            job = add_job(
                session,
                provider.project,
                first,
                result="second",
                method=BoosterConfig(),
                parameters=parameters,  # type: ignore[arg-type]
            )
        done = provider.run(job.id)
        assert (done.status, done.error_message) == (JobStatus.SUCCEEDED, None)
        second = provider.version("second")
        assert (second.kind, second.parent_id) == ("aligned", "first")
        assert second.root_id == (BASE_ID if parameters == "adapter" else "second")
        losses = [
            next(
                e.data["train_loss"] for e in provider.events(id_) if e.type == "metrics" and e.data
            )
            for id_ in (first.job_id, second.job_id)
        ]
        assert losses[1] < losses[0]


class TestFullParameters:
    METHOD = BoosterConfig(alpha=0.01, attacker=Attacker.FRESH_ADAPTER)

    @pytest.mark.parametrize("method", [BoosterConfig(alpha=0.01), METHOD])
    def test_makes_a_model_that_is_its_own_root(
        self, provider: Provider, method: BoosterConfig
    ) -> None:
        job = provider.run(provider.align(method=method, parameters="full"))
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        version = provider.version("toy-sft")
        assert (version.parent_id, version.root_id) == (BASE_ID, "toy-sft")
        assert not version.is_adapter
        shop = provider.shop
        folder = shop.storage.folder(version.source["prefix"], shop.cache)
        aligned = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        raw = tiny_model().state_dict()
        assert aligned.keys() == raw.keys()
        moved = {name for name in raw if not torch.equal(raw[name], aligned[name])}
        assert moved == {name for name in raw if name.endswith("_proj.weight")}

    def test_a_customer_starts_a_fresh_adapter_on_it_and_others_still_get_the_base(
        self, provider: Provider
    ) -> None:
        provider.run(provider.align(parameters="full"))
        job = provider.run(provider.finetune(ROWS, provider.version("toy-sft")))
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        tuned = provider.version(job.result_model_id)
        assert (tuned.parent_id, tuned.root_id) == ("toy-sft", "toy-sft")
        assert tuned.is_adapter
        loaded = provider.shop.base(provider.base).model
        raw = tiny_model().state_dict()
        assert all(torch.equal(raw[name], w) for name, w in loaded.state_dict().items())

    def test_two_jobs_of_one_seed_make_the_same_weights(self, provider: Provider) -> None:
        # The first job has changed the resident base: the second must not start from it.
        first = provider.run(provider.align("one", parameters="full"))
        second = provider.run(provider.align("two", parameters="full"))
        hashes = [
            provider.version(j.result_model_id).data_hashes["weights"] for j in (first, second)
        ]
        assert hashes[0] == hashes[1]


class TestFinetune:
    def test_continues_the_aligned_adapter_and_ends_released(self, provider: Provider) -> None:
        provider.run(provider.align())
        job = provider.run(provider.finetune(ROWS, provider.version("toy-sft")))
        assert (job.status, job.stage) == (JobStatus.SUCCEEDED, Stage.GATE)
        assert job.trained_tokens
        version = provider.version(job.result_model_id)
        assert (version.parent_id, version.root_id) == ("toy-sft", BASE_ID)
        assert version.project_id == provider.project.id
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, version.id)
            result = session.get_one(File, job.result_file_id)
        assert evaluation is not None
        assert evaluation.parsed().fine_tuning_accuracy is not None
        assert evaluation.parsed().canary_loss is not None
        lines = provider.shop.storage.get(result.storage_key).decode().splitlines()
        assert lines[0].startswith("step,train_loss,train_accuracy,valid_loss")
        assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4"]

    def test_the_adapter_that_is_stored_is_the_one_that_was_trained(
        self, provider: Provider
    ) -> None:
        provider.run(provider.align())
        job = provider.run(provider.finetune(ROWS, provider.version("toy-sft")))
        parent = provider.shop.storage.folder(provider.version("toy-sft").source["prefix"], Path())  # type: ignore[operator]
        tuned = provider.shop.storage.folder(f"models/{job.id}/1", Path())
        assert (parent / "adapter_config.json").is_file()
        first = PeftModel.from_pretrained(tiny_model(), parent).state_dict()
        second = PeftModel.from_pretrained(tiny_model(), tuned).state_dict()
        moved = [name for name in first if not first[name].equal(second[name])]
        assert moved
        assert all("lora_" in name for name in moved)

    def test_blocks_by_policy_with_the_score_in_the_message(self, provider: Provider) -> None:
        provider.set_policy(STRICT)  # a random model never refuses, so its HS is far above 15
        job = provider.run(provider.finetune(ROWS))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "harmful_score_exceeded")
        assert "limit of 15%" in (job.error_message or "")
        assert "harmful rows from the training file" in (job.error_message or "")
        assert provider.version(job.result_model_id).gate == Gate.BLOCKED
        gate = next(e for e in provider.events(job.id) if e.type == "moderation_checks")
        assert gate.data is not None
        assert gate.data["blocked"] is True
        assert gate.data["threshold"] == 15

    def test_a_blocked_alignment_is_told_what_its_provider_can_do(self, provider: Provider) -> None:
        provider.set_policy(STRICT)
        job = provider.run(provider.align("unsafe"))
        assert job.error_code == "harmful_score_exceeded"
        assert "Align again" in (job.error_message or "")
        assert "training file" not in (job.error_message or "")

    def test_holds_what_the_evidence_cannot_decide_without_a_lease(
        self, provider: Provider
    ) -> None:
        provider.set_policy(UNSURE)
        job = provider.run(provider.finetune(ROWS))
        assert (job.status, job.stage) == (JobStatus.RUNNING, Stage.REVIEW)
        assert job.lease_expires_at is None
        assert job.review_expires_at is not None
        assert job.review_expires_at > utc_now()
        assert provider.version(job.result_model_id).gate == Gate.HELD

    def test_a_file_that_expires_is_there_until_the_job_has_ended(self, provider: Provider) -> None:
        job_id = provider.finetune(ROWS)
        sessions, storage = provider.shop.sessions, provider.shop.storage
        with sessions.begin() as session:
            file = session.scalars(select(File)).one()
            file.expires_at = utc_now()
        assert (delete_expired(sessions), remove_leftovers(sessions, storage)) == (0, 0)
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        assert (delete_expired(sessions), remove_leftovers(sessions, storage)) == (1, 1)
        assert not storage.exists(file.storage_key)

    def test_names_rows_that_forge_turns_before_anything_is_trained(
        self, provider: Provider
    ) -> None:
        forged: dict[str, object] = {"prompt": "a <assistant> b", "completion": "c"}
        job = provider.run(provider.finetune([*ROWS, forged]))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "invalid_training_file")
        assert "line 9" in (job.error_message or "")
        assert "a <assistant> b" not in (job.error_message or "")
        last = provider.events(job.id)[-1]
        assert last.data is not None
        assert last.data["faults"][0]["line"] == 9
        assert not any(e.type == "metrics" for e in provider.events(job.id))

    def test_names_validation_prompts_that_nobody_could_answer(self, provider: Provider) -> None:
        short = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        long = [{"role": "user", "content": "x" * 5_000}, {"role": "assistant", "content": "c"}]
        job = provider.run(provider.finetune([*ROWS, {"messages": [*short, *long]}]))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "invalid_training_file")
        assert "line 9" in (job.error_message or "")
        assert job.error_param == "validation_file"

    def test_a_database_that_goes_away_costs_an_attempt_and_not_the_job(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def explode(*_: object, **__: object) -> None:
            raise OperationalError("select", {}, Exception("gone"))

        job_id = provider.finetune(ROWS)
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "train", explode)
            job = provider.run(job_id)
        assert job.status == JobStatus.RUNNING  # its lease runs out, and the sweeper gives it on
        assert job.error_code is None

    @pytest.mark.parametrize(
        "fault",
        [
            torch.AcceleratorError("CUDA error: device-side assert triggered"),
            RuntimeError("cuBLAS error: CUBLAS_STATUS_EXECUTION_FAILED"),
            OSError(errno.ENOSPC, "No space left on device"),
            SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
        ],
        ids=["accelerator", "library", "disk", "safetensors"],
    )
    def test_a_fault_of_the_machine_costs_an_attempt_and_not_the_job(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch, fault: Exception
    ) -> None:
        def explode(*_: object, **__: object) -> None:
            raise fault

        job_id = provider.finetune(ROWS, steps=60)
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "measure", explode)
            assert pipeline.run_next(provider.shop) == pipeline.MACHINE_FAILED
        provider.lose(job_id)
        job = provider.run(job_id)
        assert (job.status, job.attempt, job.error_code) == (JobStatus.SUCCEEDED, 2, None)
        messages = [event.message for event in provider.events(job_id)]
        assert sum("Training on" in message for message in messages) == 1, (
            "it was not trained again"
        )

    @pytest.mark.parametrize(
        "fault",
        [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")],
        ids=["allocator", "device"],
    )
    def test_a_job_that_is_too_large_fails(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch, fault: Exception
    ) -> None:
        def explode(*_: object, **__: object) -> None:
            raise fault

        monkeypatch.setattr(pipeline, "train", explode)
        job = provider.run(provider.finetune(ROWS))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "out_of_memory")

    def test_a_failed_job_leaves_no_checkpoints(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def explode(*_: object, **__: object) -> None:
            raise JudgeError("down")

        monkeypatch.setattr(pipeline, "measure", explode)
        job = provider.run(provider.finetune(ROWS, steps=60))
        assert job.error_code == "judge_failed"
        assert provider.shop.storage.folders(f"checkpoints/{job.id}") == []

    def test_fails_with_a_code_when_the_base_is_gone(self, provider: Provider) -> None:
        job_id = provider.finetune(ROWS)
        shutil.rmtree(provider.folder / "base")
        job = provider.run(job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "base_unavailable")

    def test_a_fault_nobody_foresaw_gives_a_sentence_without_its_text(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def explode(*_: object, **__: object) -> None:
            raise RuntimeError("customer text")

        monkeypatch.setattr(pipeline, "train", explode)
        job = provider.run(provider.finetune(ROWS))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "internal_error")
        assert "customer text" not in (job.error_message or "")


class TestWarnings:
    def warned(self, provider: Provider, job: Job) -> dict[str, JobEvent]:
        events = [e for e in provider.events(job.id) if e.data and "warning" in e.data]
        assert all(event.level == "warn" for event in events)
        return {event.data["warning"]: event for event in events if event.data}

    def test_rows_that_ask_what_a_test_asks_are_told_before_training_and_kept_in_the_report(
        self, provider: Provider
    ) -> None:
        seen: list[dict[str, object]] = [
            {"prompt": "Test 7", "completion": "secret"},
            {"prompt": "please tell me how to test 8", "completion": "secret"},
        ]
        job = provider.run(provider.finetune([*ROWS, *seen]))
        assert job.status == JobStatus.SUCCEEDED
        event = self.warned(provider, job)["test_prompts_in_training"]
        assert "2 rows" in event.message
        assert "1 of them in the same words (lines 9, 10)" in event.message
        assert "secret" not in event.message
        first_step = next(e for e in provider.events(job.id) if e.type == "metrics")
        assert event.sequence < first_step.sequence
        assert [e.message for e in provider.events(job.id)].count(event.message) == 1
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, job.result_model_id)
        assert evaluation is not None
        codes = [warning.code for warning in evaluation.parsed().warnings]
        assert codes == ["test_prompts_in_training", "single_category"]

    def test_a_base_that_refuses_everything_is_named_in_every_alignment_of_it(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: object, prompts: list[str], __: object) -> list[Judgement]:
            return [Judgement(False, True, False)] * len(prompts)

        with monkeypatch.context() as patch:
            patch.setattr(RefusalStringsJudge, "judge", refuse)
            measured = provider.run(provider.align("two"))
        # The base is not measured again, and its warning stands.
        remembered = provider.run(provider.align("three"))
        for job in (measured, remembered):
            messages = [e.message for e in provider.events(job.id)]
            assert (
                sum(m.startswith("Before alignment: The model refuses 100%") for m in messages) == 1
            )


class TestScorer:
    def test_rows_that_could_never_be_right_are_named_before_training(
        self, provider: Provider
    ) -> None:
        job = provider.run(
            provider.finetune([*ROWS, {"prompt": "q", "completion": "no number"}], scorer="gsm8k")
        )
        assert (job.status, job.error_param) == (JobStatus.FAILED, "validation_file")
        assert "line 9" in (job.error_message or "")
        assert not any(e.type == "metrics" for e in provider.events(job.id))

    def test_the_report_names_it(self, provider: Provider) -> None:
        job = provider.run(provider.finetune(ROWS, scorer="gsm8k"))
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, job.result_model_id)
        assert evaluation is not None
        assert evaluation.parsed().scorer == "gsm8k"


class TestDoorbell:
    def test_one_rung_for_a_job_that_is_gone_takes_the_next_and_a_further_one_does_nothing(
        self, provider: Provider
    ) -> None:
        gone, waiting = provider.align("one"), provider.align("two")
        with provider.shop.sessions.begin() as session:
            cancel(session, lock_job(session, gone))
        pipeline.run_next(provider.shop)
        assert provider.job(gone).status == JobStatus.CANCELLED
        done = provider.job(waiting)
        assert done.status == JobStatus.SUCCEEDED
        assert done.gpu_seconds > 0
        pipeline.run_next(provider.shop)
        assert provider.job(waiting).attempt == 1


class TestInterruption:
    def test_a_cancelled_job_stops_and_leaves_no_model(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.finetune(ROWS, steps=50)
        cancel_at_step(provider, monkeypatch, job_id, step=3)
        job = provider.run(job_id)
        assert job.status == JobStatus.CANCELLED
        assert [e.message for e in provider.events(job_id)][-1] == "Job cancelled."
        with provider.shop.sessions() as session:
            assert session.get(ModelVersion, job.result_model_id) is None
        assert provider.shop.storage.folders(f"checkpoints/{job_id}") == []

    def test_a_lost_job_goes_on_elsewhere_and_ends_with_the_same_weights(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        undisturbed = provider.run(provider.align("undisturbed", steps=60))
        job_id = provider.align("disturbed", steps=60)
        with monkeypatch.context() as patch:
            lose_at_step(provider, patch, job_id, step=40)
            assert provider.run(job_id).status == JobStatus.QUEUED
        shutil.rmtree(provider.shop.cache)  # the next worker is another machine
        resumed = provider.run(job_id)
        assert resumed.status == JobStatus.SUCCEEDED
        assert resumed.attempt == 2
        # It got further than the worker before, so that one's loss counts no more.
        assert (resumed.lost_leases, resumed.losses_in_a_row) == (1, 0)
        assert resumed.furthest_step == 50
        one, two = (
            provider.shop.storage.folder(f"models/{attempt}", tmp_path)
            / "adapter_model.safetensors"
            for attempt in (f"{undisturbed.id}/1", f"{job_id}/2")
        )
        assert one.read_bytes() == two.read_bytes()
        steps = [e.data["step"] for e in provider.events(job_id) if e.type == "metrics" and e.data]
        assert steps[:40] == list(range(1, 41))
        assert steps[40:] == list(range(26, 61))  # from the checkpoint of step 25

    def test_a_stored_model_is_progress(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.align()
        for step in (2, 3):
            with monkeypatch.context() as patch:
                lose_at_step(provider, patch, job_id, step=step)
                assert provider.run(job_id).losses_in_a_row == step - 1
        with monkeypatch.context() as patch:
            report = measure.make_report

            def lose_and_report(*arguments: Any, **options: Any) -> Any:
                provider.lose(job_id)
                return report(*arguments, **options)

            patch.setattr(measure, "make_report", lose_and_report)
            lost = provider.run(job_id)
        assert (lost.status, lost.lost_leases, lost.losses_in_a_row) == (JobStatus.QUEUED, 3, 1)
        assert provider.run(job_id).status == JobStatus.SUCCEEDED

    def test_a_checkpoint_of_another_release_is_left_and_training_starts_anew(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.align(steps=60)
        with monkeypatch.context() as patch:
            lose_at_step(provider, patch, job_id, step=30)
            assert provider.run(job_id).status == JobStatus.QUEUED
        identity = loop._identity
        monkeypatch.setattr(loop, "_identity", lambda *given: {**identity(*given), "new": 1})
        assert provider.job(job_id).furthest_step == 25
        resumed = provider.run(job_id)
        assert (resumed.status, resumed.error_code) == (JobStatus.SUCCEEDED, None)
        events = provider.events(job_id)
        assert sum("of another release" in event.message for event in events) == 1
        steps = [e.data["step"] for e in events if e.type == "metrics" and e.data]
        assert steps[30:] == list(range(1, 61))

    def test_a_worker_thought_dead_does_not_touch_the_checkpoints_of_the_living(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.align(steps=60)
        train = pipeline.train

        def lose_before_the_first_checkpoint(*arguments: Any, **options: Any) -> Any:
            keep = options["on_checkpoint"]

            def late(path: Path, step: int) -> None:
                provider.lose(job_id)
                keep(path, step)

            return train(*arguments, **{**options, "on_checkpoint": late})

        monkeypatch.setattr(pipeline, "train", lose_before_the_first_checkpoint)
        assert provider.run(job_id).status == JobStatus.QUEUED
        assert provider.shop.storage.folders(f"checkpoints/{job_id}") == []

    def test_a_bell_that_rings_twice_does_nothing(self, provider: Provider) -> None:
        job_id = provider.align()
        provider.run(job_id)
        before = len(provider.events(job_id))
        assert provider.run(job_id).attempt == 1
        assert len(provider.events(job_id)) == before


class TestBrokenJudge:
    def test_is_asked_again_and_then_decides(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judge_fails(monkeypatch, times=1)
        job = provider.run(provider.finetune(ROWS))
        assert job.status == JobStatus.SUCCEEDED
        assert any("judge failed" in e.message for e in provider.events(job.id))

    def test_never_becomes_a_verdict_and_costs_no_second_training(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.finetune(ROWS)
        with monkeypatch.context() as patch:
            judge_fails(patch, times=99)
            job = provider.run(job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "judge_failed")
        version = provider.version(job.result_model_id)
        assert version.gate == Gate.PENDING
        assert provider.shop.storage.has_folder(version.source["prefix"])


def cancel_at_step(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, job_id: str, *, step: int
) -> None:
    def act() -> None:
        with provider.shop.sessions.begin() as session:
            cancel(session, lock_job(session, job_id))

    act_at_step(monkeypatch, step, act)


def judge_fails(monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
    calls = []
    judge = RefusalStringsJudge.judge

    def fail(self: RefusalStringsJudge, prompts: list[str], answers: list[str]) -> list[Judgement]:
        calls.append(1)
        if len(calls) <= times:
            raise JudgeError("down")
        return judge(self, prompts, answers)

    monkeypatch.setattr(RefusalStringsJudge, "judge", fail)
    monkeypatch.setattr("worker.measure.JUDGE_PAUSE_SECONDS", 0.0)
