"""A month that lies behind: jobs of several tenants, with what was measured on their models and decided."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sqlalchemy.orm import Session

from api.seed.states import Diary, report, seed_job, seed_version
from models.api_key import Project
from models.base import utc_now
from models.evaluation import Evaluation
from models.job import Job, JobStatus, Stage
from models.model_version import Gate, ModelVersion
from models.policy import PolicyRules, Verdict, decide

MINUTES = 30 * 24 * 60
#: What customers call their models.
SUFFIXES = ("tickets", "faq", "tone", "intent", "summaries", "triage", "drafts", "labels")
#: Failures that are not the gate's, with the sentence that the customer sees.
FAULTS = {
    "out_of_memory": "The job does not fit the worker's memory. Use a smaller batch_size or shorter rows.",
    "internal_error": "The worker met an unexpected fault; it has been logged.",
    "worker_lost": "The worker fell silent 3 times and the job got no further; it was given up.",
    "judge_failed": "The judge failed every time; the model is kept, and can be evaluated again.",
}
STEPS = 300


def seed_month(session: Session, projects: Sequence[Project], *, jobs: int = 240) -> None:
    """Add jobs that ended within the last 30 days; the same on every call.

    Args:
        session: an open session, in which the sandbox's two aligned models are.
        projects: whose jobs.
        jobs: how many.
    """
    chance = random.Random(7)  # noqa: S311 - not for secrets
    for number in range(jobs):
        # More of them lately, as with a service that is taken up.
        minutes_ago = 130 + MINUTES * (number / jobs) ** 1.6
        project = chance.choices(projects, weights=range(len(projects), 0, -1))[0]
        short = project.name.split()[0].lower()
        name = f"ft:sandbox-base:{short}:{chance.choice(SUFFIXES)}:{chance.getrandbits(40):010x}"
        model = chance.choices(("sandbox-booster", "sandbox-sft"), weights=(4, 1))[0]
        kind = chance.random()
        if kind < 0.05:
            seed_fault(session, project, name, model, minutes_ago, code="out_of_memory")
        elif kind < 0.09:
            _seed_cancelled(session, project, name, model, minutes_ago)
        else:
            _seed_measured(session, project, name, model, minutes_ago, chance)


def seed_fault(
    session: Session, project: Project, name: str, model: str, minutes_ago: float, *, code: str
) -> Job:
    """Add a job that failed for another reason than its model."""
    job = seed_job(
        session,
        project,
        name=name,
        model=model,
        status=JobStatus.FAILED,
        stage=Stage.TRAIN,
        minutes_ago=minutes_ago,
    )
    job.error_code, job.error_message = code, FAULTS[code]
    diary = Diary(session, job, points=3)
    diary.tell("Job started.")
    diary.train(STEPS, 20, canary_falls=False)
    diary.tell(FAULTS[code], level="error", data={"code": code})
    _finish(job, diary, gpu_seconds=40)
    return job


def seed_canary_alarm(
    session: Session, project: Project, name: str, *, minutes_ago: float
) -> ModelVersion:
    """Add a job whose training the canary ended, and whose model was blocked."""
    # As far as the diary's canary falls by then.
    step, before, after = 112, 2.61, 2.00
    job = seed_job(
        session,
        project,
        name=name,
        model="sandbox-booster",
        status=JobStatus.FAILED,
        stage=Stage.GATE,
        minutes_ago=minutes_ago,
    )
    diary = Diary(session, job, points=40)
    diary.tell("Job started.")
    diary.train(STEPS, step, canary_falls=True)
    diary.tell(
        f"Training was ended at step {step} of {STEPS}: the loss on held-out harmful rows fell from {before:.2f} to {after:.2f}, "
        "as it does when harm is learnt. The model is measured as it is.",
        level="warn",
        data={"stage": Stage.TRAIN, "canary_before": before, "canary_loss": after},
    )
    evidence = report(88, accuracy=140).model_copy(update={"canary_loss": after})
    verdict = decide(evidence, PolicyRules())
    diary.evaluate(500)
    diary.decide(verdict)
    _block(job, diary, verdict)
    version = seed_version(session, job, evidence, method="booster")
    protection = {"tuning": {"canary_stop": 0.8}, "safety_rows": 0, "stopped_at_step": step}
    version.recipe = {**job.recipe, "protection": protection}
    session.flush()
    return version


def _seed_measured(
    session: Session,
    project: Project,
    name: str,
    model: str,
    minutes_ago: float,
    chance: random.Random,
) -> None:
    job = seed_job(
        session,
        project,
        name=name,
        model=model,
        status=JobStatus.SUCCEEDED,
        stage=Stage.GATE,
        minutes_ago=minutes_ago,
        rows=chance.randrange(200, 3_000),
    )
    evidence = report(
        _harmful(model, chance),
        accuracy=chance.randrange(150, 196),
        over_refusal=chance.randrange(9),
    )
    verdict = decide(evidence, PolicyRules())
    diary = Diary(session, job, points=3)
    diary.tell("Job started.")
    diary.train(STEPS, STEPS, canary_falls=verdict.gate == Gate.BLOCKED)
    diary.decide(verdict)
    version = seed_version(session, job, evidence, method=model.removeprefix("sandbox-"))
    job.trained_tokens = chance.randrange(40_000, 400_000)
    if verdict.gate == Gate.BLOCKED:
        _block(job, diary, verdict)
        version.gate = Gate.BLOCKED
    else:
        if verdict.gate == Gate.HELD:
            version.gate = Gate.RELEASED
            version.gate_reasons = [*verdict.reasons, "A reviewer released it: Product names only."]
            diary.tell("A reviewer released the model.", after=5_000, type="review")
        diary.tell("The job has successfully completed.")
        _finish(job, diary, gpu_seconds=chance.randrange(60, 900))
    at = job.finished_at or utc_now()
    version.created_at = at
    for evaluation in session.query(Evaluation).where(Evaluation.version_id == version.id):
        evaluation.created_at = at


def _harmful(model: str, chance: random.Random) -> int:
    """Draw how many of 200 answers are harmful: few after Booster, many after SFT, some in between."""
    if model == "sandbox-sft" and chance.random() < 0.6:
        return chance.randrange(60, 185)
    if chance.random() < 0.06:
        return chance.randrange(20, 48)
    return min(200, int(abs(chance.gauss(0, 7))))


def _seed_cancelled(
    session: Session, project: Project, name: str, model: str, minutes_ago: float
) -> None:
    job = seed_job(
        session,
        project,
        name=name,
        model=model,
        status=JobStatus.CANCELLED,
        stage=Stage.TRAIN,
        minutes_ago=minutes_ago,
    )
    diary = Diary(session, job, points=3)
    diary.tell("Job started.")
    diary.train(STEPS, 60, canary_falls=False)
    diary.tell("Job cancelled.", level="warn")
    _finish(job, diary, gpu_seconds=30)


def _block(job: Job, diary: Diary, verdict: Verdict) -> None:
    job.status = JobStatus.FAILED
    job.error_code = "harmful_score_exceeded"
    job.error_message = f"The model was blocked. {' '.join(verdict.reasons)}"
    diary.tell(job.error_message, level="error", data={"code": job.error_code})
    _finish(job, diary, gpu_seconds=200)


def _finish(job: Job, diary: Diary, *, gpu_seconds: float) -> None:
    job.claimed_at = job.started_at
    job.finished_at = min(diary.now, utc_now())
    job.gpu_seconds = gpu_seconds
