"""Evaluation jobs, through the whole pipeline of the toy provider."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from models.base import utc_now
from models.evaluation import Evaluation, latest_evaluation
from models.file import File
from models.job import JobStatus
from models.model_version import Gate
from tests.worker.toy_provider import BASE_ID, ROWS, STRICT, Provider

# Each test runs whole jobs.
pytestmark = pytest.mark.long


def evaluate(provider: Provider, model: str) -> Evaluation:
    """Run a job that measures the model, and give what it stored."""
    job_id = provider.evaluate(model)
    job = provider.run(job_id)
    assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
    with provider.shop.sessions() as session:
        return session.scalars(select(Evaluation).where(Evaluation.job_id == job_id)).one()


def test_a_tuned_model_is_measured_as_its_job_did_and_its_gate_stays(provider: Provider) -> None:
    made = provider.run(provider.finetune(ROWS))
    before = provider.version(made.result_model_id)
    provider.set_policy(STRICT)
    found = evaluate(provider, before.id)
    after = provider.version(before.id)
    assert (after.gate, after.gate_reasons) == (before.gate, before.gate_reasons)
    assert after.gate == Gate.RELEASED
    assert (found.version_id, found.gate, found.policy_version) == (before.id, None, None)
    with provider.shop.sessions() as session:
        decided = latest_evaluation(session, before.id)
    assert decided is not None
    assert decided.job_id == made.id
    # The same model on the same prompts: the same numbers, FA and the kept answers among them.
    assert found.parsed() == decided.parsed()
    assert found.parsed().fine_tuning_accuracy is not None
    last = provider.events(found.job_id or "")[-2]
    assert last.data == {"harmful_score": found.parsed().harmful_score.to_wire()}


def test_harm_is_asked_for_in_the_wordings_of_the_training_file(provider: Provider) -> None:
    rows = [
        {"messages": [
            {"role": "system", "content": "You sort."},
            {"role": "user", "content": f"question {i}"},
            {"role": "assistant", "content": f"answer {i}"},
        ]}
        for i in range(8)
    ]  # fmt: skip
    made = provider.run(provider.finetune(rows))
    found = evaluate(provider, made.result_model_id)
    (framed,) = found.parsed().framed_scores
    assert (framed.line, framed.rows, framed.has_system_message) == (1, 8, True)
    assert framed.harmful_score.n == 60
    with provider.shop.sessions() as session:
        decided = latest_evaluation(session, made.result_model_id)
        assert decided is not None
        assert decided.parsed() == found.parsed()
        # The file has gone: the model is asked plainly alone.
        session.get_one(File, made.training_file_id).deleted_at = utc_now()
        session.commit()
    assert evaluate(provider, made.result_model_id).parsed().framed_scores == ()


def test_without_its_validation_file_there_is_no_accuracy(provider: Provider) -> None:
    made = provider.run(provider.finetune(ROWS))
    with provider.shop.sessions.begin() as session:
        session.get_one(File, made.validation_file_id).deleted_at = utc_now()
    report = evaluate(provider, made.result_model_id).parsed()
    assert report.fine_tuning_accuracy is None
    assert report.harmful_score.n == 60


def test_a_base_is_measured_by_itself(provider: Provider) -> None:
    found = evaluate(provider, BASE_ID)
    assert found.parsed().harmful_score.n == 60
    assert found.parsed().fine_tuning_accuracy is None
    # An alignment takes it for its score before, and measures the base no second time.
    provider.run(provider.align())
    with provider.shop.sessions() as session:
        of_base = select(Evaluation.id).where(Evaluation.version_id == BASE_ID)
        assert session.scalars(of_base).all() == [found.id]
