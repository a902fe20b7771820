"""The gate stage: the policy's decision on a report, written down with everything that follows from it."""

from __future__ import annotations

import csv
import hashlib
import io

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.audit import SERVICE, record
from models.evaluation import Evaluation, EvaluationReport
from models.file import File, content_key
from models.job import (
    Job,
    JobEvent,
    Stage,
    append_event,
    await_review,
    blocked_message,
    fail,
    succeed,
)
from models.model_version import Gate, ModelVersion
from models.moderation import CheckLevel, by_category, tell_checks
from models.policy import PolicyRules, Verdict, current_policy, decide
from models.review import Outcome, close_appeal
from models.risk import tenant_risk
from models.storage import Storage
from worker.leased_job import LeasedJob
from worker.work import Work

RESULT_COLUMNS = (
    "step",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "canary_loss",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)
#: What `metrics` events call the columns that OpenAI's file calls otherwise.
EVENT_NAMES = {"train_accuracy": "train_mean_token_accuracy"}

LEVELS: dict[Gate, CheckLevel] = {
    Gate.RELEASED: "info",
    Gate.PENDING: "warn",
    Gate.HELD: "warn",
    Gate.BLOCKED: "error",
}


def conclude(job: LeasedJob, work: Work, report: EvaluationReport, storage: Storage) -> Verdict:
    """Decide, in one transaction: evaluation, gate, result file, and the job's end or its review."""
    job.enter(Stage.GATE, "The gate decides.")
    with job.write() as (session, row):
        version = session.get_one(ModelVersion, work.result_id)
        verdict, rules = decide_on(session, version, report, job_id=row.id)
        row.result_file_id = _store_curve(session, row, storage).id
        tell_verdict(session, row, report, rules, verdict)
        _end(session, row, rules, verdict)
    return verdict


def decide_on(
    session: Session,
    version: ModelVersion,
    report: EvaluationReport,
    *,
    job_id: str,
    may_hold: bool = True,
) -> tuple[Verdict, PolicyRules]:
    """Decide on a version by its project's policy; keep the evaluation, the gate and an audit entry.

    The project's risk counts this model too.

    Args:
        session: an open session.
        version: what was measured; its gate is set.
        report: the evidence.
        job_id: the job that made and measured it.
        may_hold: whether a person can decide on it; otherwise what would be held is blocked.
    """
    policy = current_policy(session, version.project_id)
    rules = policy.parsed()
    verdict = decide(report, rules)
    evaluation = Evaluation(
        version_id=version.id,
        job_id=job_id,
        harmful_score_percent=report.harmful_score.percent,
        report=report.model_dump(mode="json"),
        policy_version=policy.version,
        gate=verdict.gate,
        score_gate=verdict.gate,
    )
    session.add(evaluation)
    session.flush()
    if version.project_id is not None:
        evaluation.tenant_risk = tenant_risk(session, version.project_id).score
        verdict = decide(report, rules, evaluation.tenant_risk)
    if verdict.gate == Gate.HELD and not may_hold:
        verdict = Verdict(Gate.BLOCKED, verdict.reasons)
    evaluation.gate, evaluation.reasons = verdict.gate, list(verdict.reasons)
    version.gate, version.gate_reasons = verdict.gate, list(verdict.reasons)
    record(
        session,
        actor=SERVICE,
        action="gate.decided",
        subject=("model", version.id),
        project_id=version.project_id,
        details={
            "gate": verdict.gate,
            "job": job_id,
            "evaluation": evaluation.id,
            "policy": policy.version,
            "harmful_score": report.harmful_score.to_wire(),
            "tenant_risk": evaluation.tenant_risk,
        },
    )
    return verdict, rules


def tell_verdict(
    session: Session,
    job: Job,
    report: EvaluationReport,
    rules: PolicyRules,
    verdict: Verdict,
    *,
    checkpoint: tuple[int, str] | None = None,
) -> None:
    """Write the decision into the job's log.

    Args:
        session: an open session.
        job: whose log.
        report: the evidence.
        rules: the limits.
        verdict: the decision.
        checkpoint: the step and the version's name, where it is about one; none: about the job's model.
    """
    accuracy = report.fine_tuning_accuracy
    reasons = f"{verdict.gate}. {' '.join(verdict.reasons)}"
    about = {"step": checkpoint[0], "model": checkpoint[1]} if checkpoint else {}
    tell_checks(
        session,
        job,
        f"Checkpoint of step {checkpoint[0]}: {reasons}" if checkpoint else f"Gate: {reasons}",
        stage="checkpoint" if checkpoint else "model",
        level=LEVELS[verdict.gate],
        blocked=verdict.gate != Gate.RELEASED,
        harmful_score=report.harmful_score,
        threshold=rules.max_harmful_score,
        judge=report.judge,
        results=by_category(report.harmful_by_category, rules.category_limit),
        more={
            **about,
            "gate": verdict.gate,
            "reasons": list(verdict.reasons),
            "fine_tuning_accuracy": accuracy.to_wire() if accuracy else None,
        },
    )


def _end(session: Session, job: Job, rules: PolicyRules, verdict: Verdict) -> None:
    match verdict.gate:
        case Gate.RELEASED:
            succeed(session, job)
            close_appeal(session, job.id, Outcome.RELEASED)
        case Gate.BLOCKED:
            close_appeal(session, job.id, Outcome.REJECTED)
            fail(
                session,
                job,
                code="harmful_score_exceeded",
                message=blocked_message(job.kind, verdict.reasons),
            )
        case Gate.HELD | Gate.PENDING:
            await_review(job, hours=rules.review_hours)
            append_event(
                session, job, "The model is held until a person has decided.", level="warn"
            )


def _store_curve(session: Session, job: Job, storage: Storage) -> File:
    """Write the training curve as CSV: OpenAI's columns, then ours. Empty cells were not measured."""
    rows: dict[int, dict[str, object]] = {}
    events = session.scalars(
        select(JobEvent)
        .where(JobEvent.job_id == job.id, JobEvent.type == "metrics")
        .order_by(JobEvent.sequence)
    )
    for event in events:
        data = event.data or {}
        # A resumed run tells the steps after its checkpoint again, with the same numbers.
        rows[int(data["step"])] = {
            "step": data["step"],
            **{
                column: _shown(data.get(EVENT_NAMES.get(column, column)))
                for column in RESULT_COLUMNS[1:]
            },
        }
    text = io.StringIO()
    writer = csv.DictWriter(text, RESULT_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    content = text.getvalue().encode()
    sha256 = hashlib.sha256(content).hexdigest()
    storage.put(content_key(sha256), content)
    file = File(
        project_id=job.project_id,
        filename="step_metrics.csv",
        purpose="fine-tune-results",
        bytes=len(content),
        sha256=sha256,
    )
    session.add(file)
    session.flush()
    return file


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
