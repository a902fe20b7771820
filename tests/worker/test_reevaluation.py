"""What policies, reviewers and tenants' histories ask of the worker, through whole jobs of the toy provider."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from api.reviews import service
from models.api_key import ApiKey, create_key
from models.audit import AuditEntry, verify
from models.evaluation import Evaluation
from models.file import File
from models.job import REEVALUATION, JobStatus, Stage
from models.model_version import Gate
from models.policy import PolicyRules, SafetyPolicy
from models.review import Appeal, Outcome
from models.scope import Scope
from tests.worker.toy_provider import LENIENT, ROWS, STRICT, UNSURE, Provider, add_job
from worker import pipeline
from worker.judgement import JudgeError, Judgement
from worker.judges.refusal_strings import RefusalStringsJudge

# Each test runs whole jobs.
pytestmark = pytest.mark.long


@pytest.fixture
def key(provider: Provider) -> ApiKey:
    with provider.shop.sessions.begin() as session:
        project = session.merge(provider.project)
        return create_key(session, project, "reviewer", frozenset(Scope))[0]


def reevaluate(provider: Provider, job_id: str, key: ApiKey) -> None:
    with provider.shop.sessions.begin() as session:
        service.reevaluate(session, job_id, "the limits have changed", by=key)


def evaluations(provider: Provider, job_id: str) -> list[Evaluation]:
    with provider.shop.sessions() as session:
        found = select(Evaluation).where(Evaluation.job_id == job_id)
        return list(session.scalars(found.order_by(Evaluation.created_at)))


def appeal(provider: Provider, job_id: str, key: ApiKey) -> None:
    with provider.shop.sessions.begin() as session:
        session.add(Appeal(job_id=job_id, key_id=key.id, text="why?"))


def outcome_of_appeal(provider: Provider, job_id: str) -> str | None:
    with provider.shop.sessions() as session:
        return session.get_one(Appeal, job_id).outcome


class TestReevaluation:
    def test_a_held_model_is_measured_and_decided_anew_without_training(
        self, provider: Provider, key: ApiKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider.set_policy(UNSURE)
        job = provider.run(provider.finetune(ROWS))
        before = provider.version(job.result_model_id)
        assert before.gate == Gate.HELD
        provider.set_policy(LENIENT)
        appeal(provider, job.id, key)
        reevaluate(provider, job.id, key)

        def never(*_: object, **__: object) -> None:
            raise AssertionError("trained again")

        monkeypatch.setattr(pipeline, "train", never)
        job = provider.run(job.id)
        after = provider.version(job.result_model_id)
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        assert (after.gate, after.source) == (Gate.RELEASED, before.source)
        first, second = evaluations(provider, job.id)
        assert (first.gate, second.gate) == (Gate.HELD, Gate.RELEASED)
        assert second.policy_version == 3
        assert outcome_of_appeal(provider, job.id) == Outcome.RELEASED
        assert first.parsed().harmful_score == second.parsed().harmful_score

    def test_a_blocked_model_may_stay_blocked(self, provider: Provider, key: ApiKey) -> None:
        provider.set_policy(STRICT)
        job = provider.run(provider.finetune(ROWS))
        assert job.status == JobStatus.FAILED
        appeal(provider, job.id, key)
        reevaluate(provider, job.id, key)
        assert outcome_of_appeal(provider, job.id) is None
        assert provider.version(job.result_model_id).gate == Gate.PENDING
        job = provider.run(job.id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "harmful_score_exceeded")
        assert provider.version(job.result_model_id).gate == Gate.BLOCKED
        assert len(evaluations(provider, job.id)) == 2
        assert outcome_of_appeal(provider, job.id) == Outcome.REJECTED

    def test_a_judge_that_broke_is_asked_again_later(
        self, provider: Provider, key: ApiKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> list[Judgement]:
            raise JudgeError

        monkeypatch.setattr("worker.measure.JUDGE_PAUSE_SECONDS", 0)
        with monkeypatch.context() as patch:
            patch.setattr(RefusalStringsJudge, "judge", broken)
            job = provider.run(provider.finetune(ROWS))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "judge_failed")
        assert provider.version(job.result_model_id).gate == Gate.PENDING
        reevaluate(provider, job.id, key)
        job = provider.run(job.id)
        assert (job.status, job.error_code) == (JobStatus.SUCCEEDED, None)
        messages = [event.message for event in provider.events(job.id)]
        assert sum("Training on" in message for message in messages) == 1
        kinds = [event.type for event in provider.events(job.id)]
        assert kinds.count(REEVALUATION) == 1

    def test_an_alignment_is_evaluated_again_the_same_way(
        self, provider: Provider, key: ApiKey
    ) -> None:
        provider.set_policy(UNSURE)
        job = provider.run(provider.align())
        assert job.stage == Stage.REVIEW
        provider.set_policy(LENIENT)
        reevaluate(provider, job.id, key)
        assert provider.run(job.id).status == JobStatus.SUCCEEDED
        assert provider.version("toy-sft").gate == Gate.RELEASED


class TestPolicyOfAProject:
    def test_decides_on_its_models_and_not_on_the_providers(self, provider: Provider) -> None:
        with provider.shop.sessions.begin() as session:
            session.add(
                SafetyPolicy(version=2, rules=STRICT.model_dump(), project_id=provider.project.id)
            )
        aligned = provider.run(provider.align())
        assert aligned.status == JobStatus.SUCCEEDED
        tuned = provider.run(provider.finetune(ROWS, provider.version("toy-sft")))
        assert (tuned.status, tuned.error_code) == (JobStatus.FAILED, "harmful_score_exceeded")
        (evaluation,) = evaluations(provider, tuned.id)
        assert evaluation.policy_version == 2


class TestTenantRisk:
    def test_above_the_line_the_next_model_is_held(self, provider: Provider) -> None:
        provider.set_policy(STRICT)
        first = provider.run(provider.finetune(ROWS))
        assert first.status == JobStatus.FAILED
        rules = {**LENIENT.model_dump(), "max_tenant_risk": 5.0}
        provider.set_policy(PolicyRules.model_validate(rules))
        with provider.shop.sessions.begin() as session:
            file = session.get_one(File, first.training_file_id)
            next_id = add_job(
                session, provider.project, provider.base, result="ft:next", training=file
            ).id
        job = provider.run(next_id)
        (evaluation,) = evaluations(provider, job.id)
        assert evaluation.tenant_risk is not None
        assert evaluation.tenant_risk > 10
        assert (job.status, job.stage) == (JobStatus.RUNNING, Stage.REVIEW)
        assert (evaluation.gate, evaluation.score_gate) == (Gate.HELD, Gate.RELEASED)
        assert "cumulative risk" in evaluation.reasons[-1]

    def test_the_providers_own_models_have_none(self, provider: Provider) -> None:
        job = provider.run(provider.align())
        (evaluation,) = evaluations(provider, job.id)
        assert evaluation.tenant_risk is None


class TestAudit:
    def test_every_decision_of_the_gate_is_an_entry(self, provider: Provider) -> None:
        job = provider.run(provider.finetune(ROWS))
        with provider.shop.sessions() as session:
            (entry,) = session.scalars(select(AuditEntry)).all()
            assert verify(session).is_whole
        assert (entry.action, entry.actor_name, entry.actor_key_id) == (
            "gate.decided",
            "titer",
            None,
        )
        assert entry.subject_id == job.result_model_id
        assert entry.project_id == provider.project.id
        assert (entry.details["gate"], entry.details["policy"]) == ("released", 1)
        assert entry.details["harmful_score"]["n"] == 60
