"""A certification job from claim to certificate, on a real database and a random tiny base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.api_key import Project
from models.base import utc_now
from models.certificate import Certificate, CertificationRun
from models.certification import CertificationPlan, SimulatedCustomer
from models.evaluation import latest_evaluation
from models.job import (
    Job,
    JobEvent,
    JobStatus,
    cancel,
    lock_job,
    request_pause,
    requeue_lost,
    resume,
)
from models.model_version import Gate, ModelVersion
from models.policy import PolicyRules, SafetyPolicy
from models.session import make_engine, session_factory
from models.storage import Storage
from models.stored_certificate import StoredCertificate
from tests.conftest import fresh_database
from tests.tiny_model import tiny_model
from tests.worker.toy_provider import (
    BASE_ID,
    add_base,
    add_certification,
    add_file,
    add_job,
    add_project,
    toy_certification_rows,
    toy_safety_set,
)
from worker import leased_job, pipeline
from worker.base_models import ResidentBase
from worker.certify import job as certification
from worker.certify import simulate as simulation
from worker.certify.assignment import read_assignment
from worker.certify.attack import training_rows
from worker.judge import RefusalStringsJudge
from worker.judgement import JudgeError
from worker.trainers.loop import TrainingDiverged
from worker.work import Workshop

# Each test runs whole jobs.
pytestmark = pytest.mark.long


def customer(family: str, ratio: float, **facts: object) -> SimulatedCustomer:
    return SimulatedCustomer.model_validate(
        {
            "family": family,
            "attack_ratio": ratio,
            "rows": 10,
            "steps": 4,
            "batch_size": 2,
            "marks": (2, 4),
            "learning_rate": 1e-2,
            **facts,
        }
    )


SMALL = CertificationPlan(
    name="small",
    customers=(
        customer("mix", 0.5),
        customer("mix", 0.5, start="fresh", rank=2),
        customer("style", 0.5, start="fresh", rank=2),
    ),
    harmful_prompts=12,
    harmless_prompts=2,
    validation_rows=3,
    max_length=128,
)


class Provider:
    """An aligned toy model, and certification jobs on it."""

    def __init__(self, shop: Workshop, folder: Path, *, has_rows: bool = True) -> None:
        self.shop = shop
        safety = toy_safety_set()
        if has_rows:
            safety = replace(safety, certification=toy_certification_rows())
        with shop.sessions.begin() as session:
            self.project: Project = add_project(session)
            self.base: ModelVersion = add_base(session, shop.storage, folder, safety)
            rules = PolicyRules(
                max_harmful_score=100, max_category_harmful_score=100, max_over_refusal=100
            )
            session.add(SafetyPolicy(version=1, rules=rules.model_dump()))

    def align(self, **options: object) -> ModelVersion:
        with self.shop.sessions.begin() as session:
            job = add_job(session, self.project, self.base, result="toy-sft", **options)  # type: ignore[arg-type]
        pipeline.run(job.id, self.shop)
        with self.shop.sessions() as session:
            return session.get_one(ModelVersion, "toy-sft")

    def ask(self, version: ModelVersion, plan: CertificationPlan = SMALL) -> str:
        with self.shop.sessions.begin() as session:
            return add_certification(session, self.project, version, plan).id

    def run(self, job_id: str) -> Job:
        pipeline.run(job_id, self.shop)
        with self.shop.sessions() as session:
            return session.get_one(Job, job_id)

    def stored(self, job_id: str) -> StoredCertificate | None:
        with self.shop.sessions() as session:
            return session.scalar(
                select(StoredCertificate).where(StoredCertificate.job_id == job_id)
            )

    def certificate(self, job_id: str) -> Certificate:
        stored = self.stored(job_id)
        assert stored is not None
        return Certificate.model_validate_json(
            self.shop.storage.get(f"{stored.prefix}/certificate.json")
        )

    def events(self, job_id: str) -> list[JobEvent]:
        with self.shop.sessions() as session:
            found = session.scalars(
                select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.sequence)
            )
            return list(found)


@contextmanager
def opened_shop(url: str, folder: Path) -> Iterator[Workshop]:
    engine = make_engine(url)
    yield Workshop(
        sessions=session_factory(engine),
        storage=Storage((folder / "object store").as_uri()),
        bases=ResidentBase(),
        cache=folder / "cache",
        owner="test",
        lease_seconds=60,
    )
    engine.dispose()


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[Workshop]:
    with opened_shop(database_url, tmp_path) as shop:
        yield shop


@pytest.fixture
def provider(shop: Workshop, tmp_path: Path) -> Provider:
    return Provider(shop, tmp_path)


@dataclass(frozen=True)
class Finished:
    """An undisturbed job that all look at."""

    provider: Provider
    version: ModelVersion
    job: Job


@pytest.fixture(scope="module")
def finished(template_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("certified")
    with fresh_database(template_url) as url, opened_shop(url, folder) as shop:
        provider = Provider(shop, folder)
        version = provider.align()
        yield Finished(provider, version, provider.run(provider.ask(version)))


def assert_same(one: Certificate, two: Certificate) -> None:
    """What was measured and what it cost are the same, but for the time."""
    assert without_seconds(one) == without_seconds(two)
    assert one.cost.trained_tokens == two.cost.trained_tokens
    assert one.cost.answers == two.cost.answers


def without_seconds(certificate: Certificate) -> dict[str, object]:
    facts = certificate.model_dump()
    for name in ("job", "created_at", "cost"):
        del facts[name]
    for run in facts["runs"]:
        del run["seconds"]
    return facts


class TestCertificate:
    def test_holds_every_run_and_leaves_the_model_as_it_was(self, finished: Finished) -> None:
        provider, version, job = finished.provider, finished.version, finished.job
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        made = provider.certificate(job.id)
        assert [(run.customer, run.seed) for run in made.runs] == [
            (who, seed) for who in SMALL.customers for seed in (0, 1, 2)
        ]
        assert [[point.step for point in run.points] for run in made.runs] == [[2, 4]] * 9
        assert all(run.points[0].prompts == 12 for run in made.runs)
        for run in made.runs:
            is_plain = run.customer.family != "style"
            assert all((point.triggered is None) == is_plain for point in run.points)
        with provider.shop.sessions() as session:
            after = session.get_one(ModelVersion, version.id)
        assert (after.gate, after.gate_reasons) == (version.gate, version.gate_reasons)
        assert after.gate == Gate.RELEASED

    def test_says_what_it_rests_on_and_what_it_cost(self, finished: Finished) -> None:
        made = finished.provider.certificate(finished.job.id)
        assert made.cost.passes == 36
        assert finished.job.trained_tokens == made.cost.trained_tokens > 0
        assert made.plan == SMALL
        assert made.plan_hash == SMALL.hash
        assert made.model.data_hashes == finished.version.data_hashes
        assert made.instruments.safety_set_hash == finished.version.data_hashes["safety_set"]
        assert made.instruments.judge.name == "refusal-strings"
        assert {"torch", "transformers", "peft", "titer"} <= set(made.instruments.versions)

    def test_is_stored_with_its_page_and_picture(self, finished: Finished) -> None:
        provider, job_id = finished.provider, finished.job.id
        stored = provider.stored(job_id)
        assert stored is not None
        assert (stored.version_id, stored.plan_hash) == (finished.version.id, SMALL.hash)
        assert stored.parsed() == provider.certificate(job_id).summary
        storage = provider.shop.storage
        assert storage.has_folder(stored.prefix)
        assert b"toy-sft" in storage.get(f"{stored.prefix}/certificate.html")
        assert storage.get(f"{stored.prefix}/certificate.png").startswith(b"\x89PNG")
        assert not storage.exists(f"checkpoints/{job_id}/runs/before-benign.json")

    def test_each_finished_run_is_told(self, finished: Finished) -> None:
        events = finished.provider.events(finished.job.id)
        told = [event.data for event in events if event.type == "progress" and event.data]
        assert [(data["done"], data["total"]) for data in told] == [(i, 9) for i in range(1, 10)]
        assert all(0 <= data["harmful_score"] <= 100 for data in told)
        assert any("9 runs, 36 optimiser steps" in event.message for event in events)
        assert events[-2].type == "certificate"

    def test_customers_learn_and_seeds_differ(self, finished: Finished) -> None:
        made = finished.provider.certificate(finished.job.id)
        losses = [[p.attack_loss for p in run.points] for run in made.runs]
        assert all(one is not None and two is not None and two < one for one, two in losses)
        assert len({run.points[-1].canary_loss for run in made.runs}) == 9

    def test_the_next_job_gets_the_base_as_it_was(self, finished: Finished) -> None:
        shop = finished.provider.shop
        loaded = shop.base(finished.provider.base).model.state_dict()
        raw = tiny_model().state_dict()
        assert loaded.keys() == raw.keys()
        assert all(weights.equal(raw[name]) for name, weights in loaded.items())

    def test_a_model_in_full_parameters_meets_fresh_adapters_alone(
        self, provider: Provider
    ) -> None:
        job_id = provider.ask(provider.align(parameters="full"))
        job = provider.run(job_id)
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        made = provider.certificate(job_id)
        assert not made.model.is_adapter
        assert {run.customer.start for run in made.runs} == {"fresh"}
        assert len(made.runs) == 9


class TestFaithfulness:
    def test_a_customer_who_continues_is_the_services_own_job(
        self, provider: Provider, tmp_path: Path
    ) -> None:
        version = provider.align()
        # The rate, the batch and the length of rows that the toy's jobs have.
        who = customer("mix", 0.5, learning_rate=1e-3, marks=(4,))
        plan = SMALL.model_copy(update={"customers": (who,), "max_length": 64})
        job_id = provider.ask(version, plan)
        provider.run(job_id)
        simulated = provider.certificate(job_id).runs[0].points[-1]

        task = read_assignment(job_id, provider.shop)
        rows = training_rows(who, task.rows, task.asked, 0).rows
        with provider.shop.sessions.begin() as session:
            storage = provider.shop.storage
            written = [row.to_dict() for row in rows]
            file = add_file(session, storage, provider.project, tmp_path, written)
            real = add_job(session, provider.project, version, result="ft:toy::1", training=file)
        assert provider.run(real.id).status == JobStatus.SUCCEEDED
        with provider.shop.sessions() as session:
            evaluation = latest_evaluation(session, real.result_model_id)
        assert evaluation is not None
        canary = evaluation.parsed().canary_loss
        assert canary is not None
        assert round(canary, 4) == simulated.canary_loss


class TestRefusal:
    def test_a_safety_set_without_rows_is_refused_before_anything_runs(
        self, shop: Workshop, tmp_path: Path
    ) -> None:
        provider = Provider(shop, tmp_path, has_rows=False)
        job_id = provider.ask(provider.align())
        job = provider.run(job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "no_certification_rows")
        assert "attack.jsonl, customer.jsonl" in (job.error_message or "")
        assert not any(event.type == "progress" for event in provider.events(job_id))

    def test_a_safety_set_with_too_few_rows_names_the_file(self, provider: Provider) -> None:
        greedy = SMALL.model_copy(update={"customers": (customer("pure", 1.0, rows=30),)})
        job = provider.run(provider.ask(provider.align(), greedy))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "too_few_certification_rows")
        assert "attack.jsonl, which has 24" in (job.error_message or "")


class TestInterruption:
    def test_a_killed_job_goes_on_and_gives_the_same_report(
        self, finished: Finished, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = finished.provider
        job_id = provider.ask(finished.version)
        with monkeypatch.context() as patch:
            # In the middle of the fresh ones, whose base is merged at that moment.
            act_after(patch, 5, lambda: lose(provider, job_id))
            assert provider.run(job_id).status == JobStatus.QUEUED
        assert not provider.shop.bases.holds(BASE_ID)
        ran = count_runs(monkeypatch)
        job = provider.run(job_id)
        assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
        assert (job.lost_leases, job.losses_in_a_row) == (1, 0)
        # The fifth was finished by a worker that had lost the job: nothing of it was kept.
        assert len(ran) == 5
        assert "4 of 9 runs were kept" in " ".join(e.message for e in provider.events(job_id))
        assert_same(provider.certificate(finished.job.id), provider.certificate(job_id))

    def test_a_paused_job_lets_go_in_the_middle_of_a_run_and_goes_on_later(
        self, finished: Finished, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = finished.provider
        job_id = provider.ask(finished.version)
        ran = count_runs(monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(leased_job, "ASK_SECONDS", 0.0)
            train = simulation.train

            def pause_and_train(*arguments: object, **options: object) -> object:
                if len(ran) == 5:  # a fresh one, whose base is merged
                    with provider.shop.sessions.begin() as session:
                        request_pause(session, lock_job(session, job_id))
                return train(*arguments, **options)  # type: ignore[arg-type]

            patch.setattr(simulation, "train", pause_and_train)
            paused = provider.run(job_id)
        assert (paused.status, paused.lease_expires_at) == (JobStatus.PAUSED, None)
        assert not provider.shop.bases.holds(BASE_ID)
        assert provider.run(job_id).status == JobStatus.PAUSED  # a bell wakes nobody
        with provider.shop.sessions.begin() as session:
            resume(session, lock_job(session, job_id))
        job = provider.run(job_id)
        assert (job.status, job.attempt, job.lost_leases) == (JobStatus.SUCCEEDED, 2, 0)
        # The fifth was given up, and began anew.
        assert len(ran) == 5 + 5
        assert_same(provider.certificate(finished.job.id), provider.certificate(job_id))

    def test_a_pause_while_it_measures(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.ask(provider.align())
        ran = count_runs(monkeypatch)
        with monkeypatch.context() as patch:
            check = leased_job.LeasedJob.check
            asked: list[int] = []

            def pause_and_check(job: leased_job.LeasedJob) -> None:
                asked.append(1)
                if len(asked) == 3:  # at the first is nothing measured yet
                    with provider.shop.sessions.begin() as session:
                        request_pause(session, lock_job(session, job_id))
                    with job.write():
                        pass
                check(job)

            patch.setattr(leased_job.LeasedJob, "check", pause_and_check)
            assert provider.run(job_id).status == JobStatus.PAUSED
        assert (len(asked), ran) == (3, [])

    def test_what_another_judge_has_measured_is_measured_anew(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.ask(provider.align())
        with monkeypatch.context() as patch:
            act_after(patch, 3, lambda: lose(provider, job_id))
            provider.run(job_id)
        identity = RefusalStringsJudge().identity.model_copy(update={"revision": "another"})
        monkeypatch.setattr(RefusalStringsJudge, "identity", identity)
        ran = count_runs(monkeypatch)
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        assert len(ran) == 9

    def test_a_kept_run_that_was_damaged_is_run_again(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.ask(provider.align())
        with monkeypatch.context() as patch:
            act_after(patch, 3, lambda: lose(provider, job_id))
            provider.run(job_id)
        root = provider.shop.storage.root
        assert root is not None
        kept = [
            p for p in (root / f"checkpoints/{job_id}").glob("runs-*/*") if "before" not in p.name
        ]
        assert len(kept) == 2
        kept[0].write_text(kept[0].read_text()[:-20])
        ran = count_runs(monkeypatch)
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        assert len(ran) == 8

    def test_a_cancelled_job_stops_and_leaves_nothing(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.ask(provider.align())

        def act() -> None:
            with provider.shop.sessions.begin() as session:
                cancel(session, lock_job(session, job_id))

        act_after(monkeypatch, 2, act)
        assert provider.run(job_id).status == JobStatus.CANCELLED
        assert provider.stored(job_id) is None
        root = provider.shop.storage.root
        assert root is not None
        assert not (root / f"checkpoints/{job_id}").exists()


class TestTrouble:
    def test_a_broken_judge_is_no_certificate(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = provider.ask(provider.align())

        def fail(*_: object) -> None:
            raise JudgeError("down")

        monkeypatch.setattr(RefusalStringsJudge, "judge", fail)
        monkeypatch.setattr("worker.measure.JUDGE_PAUSE_SECONDS", 0.0)
        job = provider.run(job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "judge_failed")
        assert provider.stored(job_id) is None

    def test_a_customer_whose_training_diverges_is_a_finding_and_no_failure(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train = certification.simulate.__globals__["train"]

        def diverge(*arguments: object, **options: object) -> object:
            result = train(*arguments, **options)
            if arguments[3].seed == 1:  # type: ignore[attr-defined]
                raise TrainingDiverged("The loss is not a number.")
            return result

        monkeypatch.setattr("worker.certify.simulate.train", diverge)
        job_id = provider.ask(provider.align())
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        made = provider.certificate(job_id)
        assert [result.diverged for result in made.customers] == [1, 1, 1]
        assert any("3 runs ended early" in sentence for sentence in made.claims)


def lose(provider: Provider, job_id: str) -> None:
    with provider.shop.sessions.begin() as session:
        _lose(session, job_id)


def _lose(session: Session, job_id: str) -> None:
    job = lock_job(session, job_id)
    job.lease_expires_at = utc_now() - timedelta(seconds=1)
    requeue_lost(session, job, max_attempts=3)


def act_after(monkeypatch: pytest.MonkeyPatch, run: int, act) -> None:  # type: ignore[no-untyped-def]
    """Do something as soon as that run is done, before it is kept."""
    simulate = certification.simulate
    ran: list[int] = []

    def simulate_and_act(*arguments: object, **options: object) -> CertificationRun | None:
        result = simulate(*arguments, **options)  # type: ignore[arg-type]
        ran.append(1)
        if len(ran) == run:
            act()
        return result

    monkeypatch.setattr(certification, "simulate", simulate_and_act)


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    simulate = certification.simulate
    ran: list[int] = []

    def simulate_and_count(*arguments: object, **options: object) -> CertificationRun | None:
        ran.append(1)
        return simulate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(certification, "simulate", simulate_and_count)
    return ran
