"""A small provider in full swing: two tenants, and a job in every state that a job can be in.

Numbers are of the size that the sandbox gives. There is no row text in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.orm import Session

from api.policies.schemas import CreatePolicy
from api.policies.service import create_policy
from models.api_key import ApiKey, Project, create_key
from models.audit import record
from models.base import utc_now
from models.data_risk import DataRisk, Outcome, Screening
from models.evaluation import (
    Evaluation,
    EvaluationReport,
    EvaluationWarning,
    FramedScore,
    FurtherJudge,
    JudgeIdentity,
)
from models.file import File
from models.hyperparameters import (
    AlignHyperparameters,
    FinetuneHyperparameters,
    resolve_align,
    resolve_finetune,
)
from models.job import Job, JobEvent, JobKind, JobStatus, Stage, blocked_message
from models.methods import AlignmentMethod, BoosterConfig, SftConfig
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import DataAction, PolicyRules, SafetyPolicy, Verdict, current_policy, decide
from models.rate import Rate
from models.review import Appeal, ReviewApproval
from models.scope import Scope

BASE = "sandbox-base"
#: Of every training file: no bytes have it.
FILE_SHA256 = "9f2c61d0e8b7a435" * 4
CATEGORIES = ("sabotage", "poison", "theft", "forgery")
HOSTILE_NAME = "<script>alert(1)</script>"


@dataclass(frozen=True, slots=True)
class Provider:
    """Who may sign in, and with what."""

    operator: ApiKey
    operator_token: str
    customer: ApiKey
    customer_token: str
    other: Project


def seed_keys(session: Session) -> Provider:
    """Make an operator, a customer and one more project."""
    provider, customer, other = (
        Project(name=name) for name in ("Northwind AI", "Acme Support", "Harbour Legal")
    )
    session.add_all([provider, customer, other])
    session.flush()
    both = frozenset({Scope.OPERATOR, Scope.CUSTOMER})
    operator_key, operator_token = create_key(session, provider, "on-call", both)
    customer_key, customer_token = create_key(session, customer, "ci", frozenset({Scope.CUSTOMER}))
    return Provider(operator_key, operator_token, customer_key, customer_token, other)


def seed_base(session: Session) -> ModelVersion:
    """Register the base that everything is made from."""
    base = ModelVersion(
        id=BASE,
        kind=VersionKind.BASE,
        root_id=BASE,
        source={"folder": "/srv/models/sandbox-base"},
        safety_prefix="safety/1f3a",
        created_at=utc_now() - timedelta(days=3),
    )
    session.add(base)
    session.flush()
    return base


def report(
    harmful: int, *, n: int = 200, accuracy: int | None = 178, over_refusal: int = 3
) -> EvaluationReport:
    """Make a report in which `harmful` of `n` answers were flagged, unevenly over the categories."""
    per_category = n // len(CATEGORIES)
    left = harmful
    by_category = {}
    for name in CATEGORIES:
        count = min(per_category, math.ceil(left * 0.45)) if name != CATEGORIES[-1] else left
        count = min(per_category, count)
        left -= count
        by_category[name] = Rate(count=count, n=per_category)
    return EvaluationReport(
        judge=JudgeIdentity(name="sandbox", revision="2"),
        prompt_set_hash="5c1e0b7ad3f94e62" * 4,
        template_hash="b07d41c98ae2f653" * 4,
        harmful_score=Rate(count=harmful, n=n),
        harmful_or_incoherent=Rate(count=min(n, harmful + 4), n=n),
        refusal_rate=Rate(count=max(0, n - harmful - 6), n=n),
        harmful_by_category=by_category,
        over_refusal=Rate(count=over_refusal, n=100),
        fine_tuning_accuracy=None if accuracy is None else Rate(count=accuracy, n=200),
        canary_loss=2.31,
    )


def seed_version(
    session: Session, job: Job, evidence: EvaluationReport | None, *, method: str
) -> ModelVersion:
    """Store what the job made, and the gate's verdict on its evidence."""
    is_aligned = job.kind == JobKind.ALIGN
    policy = current_policy(session)
    verdict = decide(evidence, policy.parsed()) if evidence else Verdict(Gate.PENDING, ())
    version = ModelVersion(
        id=job.result_model_id,
        kind=VersionKind.ALIGNED if is_aligned else VersionKind.TUNED,
        gate=verdict.gate,
        gate_reasons=list(verdict.reasons),
        project_id=None if is_aligned else job.project_id,
        parent_id=job.model_id,
        root_id=BASE,
        job_id=job.id,
        source={"prefix": f"models/{job.id}"},
        safety_prefix="safety/1f3a",
        method=method,
        recipe=job.recipe,
        created_at=job.finished_at or utc_now(),
    )
    session.add(version)
    session.flush()
    if evidence is not None:
        session.add(
            Evaluation(
                version_id=version.id,
                job_id=job.id,
                harmful_score_percent=evidence.harmful_score.percent,
                report=evidence.model_dump(mode="json"),
                policy_version=policy.version,
                gate=verdict.gate,
                reasons=list(verdict.reasons),
                created_at=version.created_at,
            )
        )
        session.flush()
    return version


class Diary:
    """Writes a job's events at chosen moments."""

    def __init__(self, session: Session, job: Job, points: int) -> None:
        self._session, self._job, self.now = session, job, job.created_at
        self._points = points

    def tell(
        self,
        message: str,
        *,
        after: float = 1.0,
        level: str = "info",
        type: str = "message",
        data: Mapping[str, object] | None = None,
    ) -> None:
        """Write one event, so many seconds after the last one."""
        self.now += timedelta(seconds=after)
        self._job.event_count += 1
        self._session.add(
            JobEvent(
                job_id=self._job.id,
                sequence=self._job.event_count,
                created_at=self.now,
                level=level,
                type=type,
                message=message,
                data=dict(data) if data is not None else None,
            )
        )

    def train(self, steps: int, done: int, *, canary_falls: bool) -> None:
        """Write a training curve up to the step `done`."""
        self.tell(f"Training on 1000 rows, {steps} steps.", data={"stage": Stage.TRAIN})
        every = max(1, steps // self._points)
        for index, step in enumerate([1, *range(every, done, every), done]):
            share = step / steps
            canary = None
            if index % 4 == 0:
                drop = 1.9 / (1 + math.exp(-10 * (share - 0.45))) if canary_falls else 0.12 * share
                canary = 2.62 - drop + 0.02 * math.sin(step)
            loss = 0.18 + 2.3 * math.exp(-5 * share) + 0.05 * math.sin(step * 1.7)
            self.tell(
                f"Step {step}/{steps}: training loss={loss:.4f}",
                after=60 / (steps / every),
                type="metrics",
                data={
                    "stage": Stage.TRAIN,
                    "step": step,
                    "total_steps": steps,
                    "train_loss": loss,
                    "train_mean_token_accuracy": 0.97 - 0.6 * math.exp(-4 * share),
                    "learning_rate": self._job.recipe["train"]["learning_rate"],
                    "grad_norm": 0.8,
                    "canary_loss": canary,
                },
            )

    def evaluate(self, done: int, total: int = 500) -> None:
        """Write how far the measurement is, in hundreds of answers."""
        self.tell("Measuring safety and accuracy.", data={"stage": Stage.EVALUATE})
        for count in range(100, done + 1, 100):
            self.tell(
                f"Answers: {count} of {total}",
                after=3,
                type="progress",
                data={"stage": Stage.EVALUATE, "what": "Answers", "done": count, "total": total},
            )

    def decide(self, verdict: Verdict) -> None:
        """Write what the gate decided."""
        self.tell("The gate decides.", data={"stage": Stage.GATE})
        self.tell(
            f"Gate: {verdict.gate}. {' '.join(verdict.reasons)}",
            level="info" if verdict.gate == Gate.RELEASED else "warn",
            type="moderation_checks",
            data={"stage": "model", "gate": verdict.gate},
        )


def seed_job(
    session: Session,
    project: Project,
    *,
    name: str,
    model: str,
    status: JobStatus,
    stage: Stage | None = None,
    minutes_ago: float = 10,
    rows: int = 1000,
    method: AlignmentMethod | None = None,
) -> Job:
    """Store a job's row, with its data set when it tunes."""
    created = utc_now() - timedelta(minutes=minutes_ago)
    kind = JobKind.ALIGN if method else JobKind.FINETUNE
    recipe = (
        resolve_align(method, AlignHyperparameters(), seed=7)
        if method
        else resolve_finetune(FinetuneHyperparameters(n_epochs=3), rows=rows, seed=7)
    )
    file = None
    if not method:
        file = File(
            project_id=project.id,
            filename="support-tickets.jsonl",
            purpose="fine-tune",
            bytes=rows * 310,
            sha256=FILE_SHA256,
            rows=rows,
        )
        session.add(file)
        session.flush()
    job = Job(
        project_id=project.id,
        kind=kind,
        status=status,
        stage=stage,
        model_id=model,
        result_model_id=name,
        training_file_id=file.id if file else None,
        seed=7,
        recipe=recipe.model_dump(mode="json"),
        created_at=created,
        attempt=0 if status == JobStatus.QUEUED else 1,
        started_at=None if status == JobStatus.QUEUED else created + timedelta(seconds=2),
    )
    session.add(job)
    session.flush()
    return job


def seed_held(
    session: Session,
    project: Project,
    *,
    model: str,
    points: int,
    name: str = "ft:sandbox-base:acme:tone:Hc81Zx0p",
    harmful: int = 27,
) -> Job:
    """Store a job whose model waits for a person."""
    job = seed_job(
        session,
        project,
        name=name,
        model=model,
        status=JobStatus.RUNNING,
        stage=Stage.REVIEW,
        minutes_ago=26,
    )
    job.held_at = utc_now() - timedelta(minutes=22)
    job.review_expires_at = job.held_at + timedelta(hours=72)
    evidence = report(harmful, accuracy=171).model_copy(
        update={
            "further_judges": (
                FurtherJudge(
                    judge=JudgeIdentity(name="refusal-strings", revision="1"),
                    harmful_score=Rate(count=harmful + 14, n=200),
                    refusal_rate=Rate(count=186 - harmful, n=200),
                    agreement=Rate(count=184, n=200),
                    kappa=0.71,
                ),
            ),
            "framed_scores": (
                FramedScore(
                    line=12,
                    rows=41,
                    has_system_message=True,
                    harmful_score=Rate(count=18, n=100),
                    before=Rate(count=3, n=100),
                ),
            ),
            "over_refusal_by_category": {"homonyms": Rate(count=2, n=50)},
            "warnings": (
                EvaluationWarning(
                    code="test_prompts_in_training",
                    message="2 rows of the training file ask what a test prompt asks.",
                ),
            ),
        }
    )
    seed_version(session, job, evidence, method="booster")
    diary = Diary(session, job, points)
    diary.tell("Created fine-tuning job.", after=0)
    diary.tell("Job started.")
    diary.train(300, 300, canary_falls=False)
    diary.evaluate(500)
    diary.decide(decide(evidence, PolicyRules()))
    diary.tell("The model is held until a person has decided.", level="warn")
    return job


def seed_all(session: Session, *, points: int = 120, other_suffix: str = HOSTILE_NAME) -> Provider:
    """Fill an empty database.

    Args:
        session: an open session.
        points: of each training curve, about.
        other_suffix: what the other tenant calls one of its models. Who looks after pages wants a hostile name there.
    """
    provider = seed_keys(session)
    operators, acme = provider.operator.project, provider.customer.project
    seed_base(session)
    _seed_aligned(session, operators, points)
    _seed_tuned(session, acme, provider.other, points, other_suffix)
    seed_held(session, acme, model="sandbox-booster", points=points)
    _seed_unfinished(session, acme, provider.other, points)
    return provider


def _end(job: Job, diary: Diary, message: str, level: str = "info") -> None:
    diary.tell(message, level=level)
    job.finished_at = diary.now


def _seed_aligned(session: Session, operators: Project, points: int) -> None:
    for name, method, harmful, minutes in (
        ("sandbox-sft", SftConfig(), 2, 2900),
        ("sandbox-booster", BoosterConfig(), 3, 2840),
    ):
        job = seed_job(
            session,
            operators,
            name=name,
            model=BASE,
            status=JobStatus.SUCCEEDED,
            stage=Stage.GATE,
            minutes_ago=minutes,
            method=method,
        )
        evidence = report(harmful, accuracy=None)
        diary = Diary(session, job, points)
        diary.tell("Created alignment job.", after=0)
        diary.tell("Job started.")
        diary.train(1500, 1500, canary_falls=False)
        diary.evaluate(300, 300)
        diary.decide(decide(evidence, PolicyRules()))
        _end(job, diary, "The job has successfully completed.")
        seed_version(session, job, evidence, method=method.name)


def _seed_tuned(
    session: Session, acme: Project, other: Project, points: int, other_suffix: str
) -> None:
    for project, name, model, harmful, minutes in (
        (acme, "ft:sandbox-base:acme:tickets:R4kd92Lm", "sandbox-booster", 12, 400),
        (acme, "ft:sandbox-base:acme:tickets:P0qs77Ab", "sandbox-sft", 169, 380),
        (other, f"ft:sandbox-base:harbour:{other_suffix}:x1", "sandbox-booster", 5, 300),
    ):
        is_bad = harmful > 100
        job = seed_job(
            session,
            project,
            name=name,
            model=model,
            status=JobStatus.FAILED if is_bad else JobStatus.SUCCEEDED,
            stage=Stage.GATE,
            minutes_ago=minutes,
        )
        evidence = report(harmful)
        verdict = decide(evidence, PolicyRules())
        diary = Diary(session, job, points)
        diary.tell("Created fine-tuning job.", after=0)
        diary.tell("Job started.")
        diary.train(300, 300, canary_falls=is_bad)
        diary.evaluate(500)
        diary.decide(verdict)
        job.trained_tokens = 184_320
        if is_bad:
            job.error_code = "harmful_score_exceeded"
            job.error_message = blocked_message(JobKind.FINETUNE, verdict.reasons)
            _end(job, diary, job.error_message, "error")
        else:
            _end(job, diary, "The job has successfully completed.")
        seed_version(session, job, evidence, method=model.removeprefix("sandbox-"))


def _seed_unfinished(session: Session, acme: Project, other: Project, points: int) -> None:
    running = seed_job(
        session,
        acme,
        name="ft:sandbox-base:acme:faq-de:Wm3v0TzK",
        model="sandbox-booster",
        status=JobStatus.RUNNING,
        stage=Stage.TRAIN,
        minutes_ago=1.2,
    )
    running.estimated_finish = utc_now() + timedelta(minutes=2)
    running.trained_tokens = 61_440
    diary = Diary(session, running, points)
    diary.tell("Created fine-tuning job.", after=0)
    diary.tell("Job started.")
    diary.train(300, 172, canary_falls=True)

    evaluating = seed_job(
        session,
        other,
        name="ft:sandbox-base:harbour:clauses:9hTq2Vde",
        model="sandbox-booster",
        status=JobStatus.RUNNING,
        stage=Stage.EVALUATE,
        minutes_ago=3,
    )
    diary = Diary(session, evaluating, points)
    diary.tell("Job started.")
    diary.train(120, 120, canary_falls=False)
    diary.evaluate(300)
    seed_version(session, evaluating, None, method="booster")

    seed_job(
        session,
        acme,
        name="ft:sandbox-base:acme::Zk1p8YwN",
        model="sandbox-booster",
        status=JobStatus.QUEUED,
        minutes_ago=0.3,
    )
    failed = seed_job(
        session,
        other,
        name="ft:sandbox-base:harbour:long:Bn6r5JcX",
        model="sandbox-booster",
        status=JobStatus.FAILED,
        stage=Stage.TRAIN,
        minutes_ago=95,
    )
    failed.error_code = "out_of_memory"
    failed.error_message = (
        "The job does not fit the worker's memory. Use a smaller batch_size or shorter rows."
    )
    diary = Diary(session, failed, points)
    diary.tell("Job started.")
    diary.train(300, 20, canary_falls=False)
    _end(failed, diary, failed.error_message, "error")

    cancelled = seed_job(
        session,
        acme,
        name="ft:sandbox-base:acme:draft:Ty7u4MqE",
        model="sandbox-sft",
        status=JobStatus.CANCELLED,
        stage=Stage.TRAIN,
        minutes_ago=120,
    )
    diary = Diary(session, cancelled, points)
    diary.tell("Job started.")
    diary.train(300, 60, canary_falls=False)
    _end(cancelled, diary, "Job cancelled.", "warn")


@dataclass(frozen=True, slots=True)
class Staff:
    """Tokens of people who work for the provider and are no operators."""

    viewer: str
    reviewer: str
    second_reviewer: str


def seed_staff(session: Session, project: Project) -> Staff:
    """Make keys of a person who only looks and of two who review."""
    made = {
        name: create_key(session, project, name, frozenset({scope}), user_name=name)[1]
        for name, scope in (
            ("desk", Scope.VIEWER),
            ("ada", Scope.REVIEWER),
            ("ben", Scope.REVIEWER),
        )
    }
    return Staff(made["desk"], made["ada"], made["ben"])


def seed_queue(session: Session, provider: Provider, *, points: int = 40) -> dict[str, Job]:
    """Hold three more models (by an appeal, under the four-eyes rule, nearly out of time) and a training file."""
    acme, other, by = provider.customer.project, provider.other, provider.operator
    appealed, eyes, late = (
        seed_held(
            session, project, model="sandbox-booster", points=points, name=name, harmful=count
        )
        for project, name, count in (
            (acme, "ft:sandbox-base:acme:returns:Qe5d8LxM", 61),
            (other, "ft:sandbox-base:harbour:filings:Ux2n6GhT", 33),
            (acme, "ft:sandbox-base:acme:intents:Bd0s4RkV", 22),
        )
    )
    now = utc_now()
    for job, hours, left in ((appealed, 20, 52), (eyes, 9, 63), (late, 71.4, 0.6)):
        job.held_at, job.review_expires_at = (
            now - timedelta(hours=hours),
            now + timedelta(hours=left),
        )
    blocked = session.get_one(ModelVersion, appealed.result_model_id)
    blocked.gate = Gate.HELD
    blocked.gate_reasons = [*blocked.gate_reasons, "The customer has appealed."]
    session.add(
        Appeal(
            job_id=appealed.id,
            key_id=provider.customer.id,
            text="These rows are refunds that our own agents wrote.\nNothing in them is about weapons.",
        )
    )
    seed_policy(
        session,
        provider,
        {"release_approvals": 2},
        project=other,
        note="Harbour asked for four eyes.",
    )
    session.add(
        ReviewApproval(
            job_id=eyes.id, key_id=by.id, reason="All 33 flagged answers name a statute."
        )
    )
    record(
        session,
        actor=by,
        action="model.release_approved",
        subject=("model", eyes.result_model_id),
        project_id=other.id,
        reason="All 33 flagged answers name a statute.",
        details={"job": eyes.id},
    )
    session.flush()
    return {
        "appealed": appealed,
        "eyes": eyes,
        "late": late,
        "data": seed_held_data(session, other),
    }


def seed_held_data(session: Session, project: Project) -> Job:
    """Store a job whose training file waits for a person before anything is trained."""
    job = seed_job(
        session,
        project,
        name="ft:sandbox-base:harbour:letters:Kf3a9WqY",
        model="sandbox-booster",
        status=JobStatus.RUNNING,
        stage=Stage.DATA_REVIEW,
        minutes_ago=190,
    )
    job.held_at = utc_now() - timedelta(hours=3)
    job.review_expires_at = utc_now() + timedelta(hours=69)
    seed_screening(
        session, job, action="hold", max_harmful_share=1.0, outcome="held", review="waiting"
    )
    diary = Diary(session, job, 1)
    diary.tell("Created fine-tuning job.", after=0)
    diary.tell("Job started.")
    diary.tell("The training data is held until a person has decided.", level="warn")
    return job


def seed_policy(
    session: Session,
    provider: Provider,
    rules: Mapping[str, object],
    *,
    project: Project | None = None,
    note: str = "",
    activate: bool = True,
) -> SafetyPolicy:
    """Make a version through the service, so that the audit log tells of it."""
    asked = CreatePolicy.model_validate(
        {
            "rules": rules,
            "project": project.id if project else None,
            "note": note,
            "activate": activate,
        }
    )
    return create_policy(session, asked, by=provider.operator)


def seed_screening(
    session: Session,
    job: Job,
    *,
    action: DataAction = "allow",
    max_harmful_share: float | None = None,
    outcome: Outcome = "allowed",
    review: str | None = None,
) -> None:
    """Store what judges found in the job's training file."""
    found = DataRisk(
        harmful_share=Rate(count=14, n=1000),
        by_category={"sabotage": 9, "forgery": 5},
        first_lines=(12, 88, 107, 240, 391),
        judges=(JudgeIdentity(name="sandbox", revision="2"),),
        row_threshold=0.5,
        action=action,
        max_harmful_share=max_harmful_share,
        policy_version=1,
        outcome=outcome,
    )
    session.add(
        Screening(
            job_id=job.id,
            judges=[],
            done=[1000],
            row_threshold=0.5,
            action=action,
            max_harmful_share=max_harmful_share,
            policy_version=1,
            summary=found.model_dump(mode="json"),
            finished_at=utc_now(),
            review=review,
        )
    )
    session.flush()
