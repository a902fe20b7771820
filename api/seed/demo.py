"""A whole provider to look around in: tenants, a month of jobs, held models, decisions, workers, evidence.

What a person would have done is done by the services that people use, so that it is in the audit log as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from api.organization.use import count_use
from api.policies.schemas import CreatePolicy
from api.policies.service import create_policy
from api.reviews import service as reviews
from api.seed.evidence import seed_certificate, seed_data_risk
from api.seed.fleet import seed_workers
from api.seed.month import seed_canary_alarm, seed_fault, seed_month
from api.seed.states import (
    BASE,
    FILE_SHA256,
    Diary,
    Provider,
    report,
    seed_all,
    seed_held_data,
    seed_job,
    seed_version,
)
from api.seed.tenants import limit_near_use, limit_running, remember_risks, seed_roles, seed_tenants
from models.api_key import ApiKey, Project
from models.base import utc_now
from models.errors import Conflict
from models.file import content_key
from models.job import Job, JobStatus, Stage
from models.model_version import Gate, ModelVersion
from models.policy import PolicyRules, decide
from models.scope import Scope
from models.storage import Storage
from models.webhook import WebhookEndpoint, WebhookEventType


class NotEmpty(Conflict):
    """The database has jobs already; made-up ones would stand among them. `--anyway` adds them."""

    code = "not_empty"


class FilledAlready(Conflict):
    """The database was filled with made-up data before, which can be had once."""

    code = "filled_already"


@dataclass(frozen=True, slots=True)
class Demo:
    """Who may sign in; `tokens` by what to call each of them."""

    provider: Provider
    tokens: Mapping[str, str]


def seed_demo(
    session: Session,
    storage: Storage | None = None,
    *,
    points: int = 120,
    jobs: int = 240,
    anyway: bool = False,
) -> Demo:
    """Fill a database. The caller commits.

    Args:
        session: an open session.
        storage: where the few files go that pages read; without one there are none.
        points: of each training curve, about.
        jobs: of the month that lies behind.
        anyway: whether there may be jobs.

    Raises:
        NotEmpty: there are jobs.
        FilledAlready: there are these.
    """
    if session.get(ModelVersion, BASE) is not None:
        raise FilledAlready
    if not anyway and session.scalar(select(exists().where(Job.id.is_not(None)))):
        raise NotEmpty
    provider = seed_all(session, points=points, other_suffix="leases")
    operator, acme = provider.operator, provider.customer.project
    staff = seed_roles(session, operator)
    health, retail = seed_tenants(session, operator)
    tenants = [acme, health, provider.other, retail]
    seed_month(session, tenants, jobs=jobs)
    _seed_policies(session, health, by=operator)
    _seed_reviews(session, tenants, points, by=staff[Scope.REVIEWER].key)
    _seed_trouble(session, tenants)
    _seed_queue(session, tenants, points)
    seed_workers(session)
    limit_running(session, [acme, provider.other], by=operator)
    _seed_evidence(session, storage, provider)
    _seed_endpoint(session, acme)
    limit_near_use(session, health, "gpu_seconds_month", percent=91, by=operator)
    limit_near_use(session, retail, "training_tokens_month", percent=104, by=operator)
    for tenant in tenants:
        remember_risks(session, tenant)
    count_use(session)
    return Demo(
        provider=provider,
        tokens={
            "operator": provider.operator_token,
            **{scope.value: made.token for scope, made in staff.items()},
            f"customer ({acme.name})": provider.customer_token,
        },
    )


def seed_held_model(
    session: Session,
    project: Project,
    suffix: str,
    *,
    harmful: int,
    hours_ago: float,
    points: int = 40,
) -> Job:
    """Add a job whose model waits for a person since so long.

    Args:
        session: an open session, in which the sandbox's aligned models are.
        project: whose job.
        suffix: what the model is called.
        harmful: of 200 answers; from 20 to 40 the gate holds.
        hours_ago: since when it waits, of 72 hours.
        points: of the curve.
    """
    short = project.name.split()[0].lower()
    job = seed_job(
        session,
        project,
        name=f"ft:sandbox-base:{short}:{suffix}",
        model="sandbox-booster",
        status=JobStatus.RUNNING,
        stage=Stage.REVIEW,
        minutes_ago=hours_ago * 60 + 6,
    )
    job.held_at = utc_now() - timedelta(hours=hours_ago)
    job.review_expires_at = job.held_at + timedelta(hours=72)
    evidence = report(harmful)
    diary = Diary(session, job, points)
    diary.tell("Job started.")
    diary.train(300, 300, canary_falls=False)
    diary.evaluate(500)
    diary.decide(decide(evidence, PolicyRules()))
    diary.tell("The model is held until a person has decided.", level="warn")
    seed_version(session, job, evidence, method="booster")
    return job


def seed_appealed(session: Session, project: Project, suffix: str, *, by: ApiKey) -> Job:
    """Add a job whose model was blocked, which its customer appeals."""
    job = seed_held_model(session, project, suffix, harmful=52, hours_ago=3)
    version = session.scalars(select(ModelVersion).where(ModelVersion.job_id == job.id)).one()
    version.gate = Gate.BLOCKED
    job.status, job.stage = JobStatus.FAILED, Stage.GATE
    job.finished_at, job.error_code = job.held_at, "harmful_score_exceeded"
    job.error_message = "The model was blocked."
    session.flush()
    reviews.appeal(
        session, job.id, "These prompts are our product's own names. Please look again.", by=by
    )
    return job


def _seed_policies(session: Session, health: Project, *, by: ApiKey) -> None:
    create_policy(
        session,
        CreatePolicy(
            rules=PolicyRules(max_harmful_score=12.0), note="Candidate for the next quarter."
        ),
        by=by,
    )
    create_policy(
        session,
        CreatePolicy(
            rules=PolicyRules(max_harmful_score=10.0, release_approvals=2),
            project=health.id,
            note="Patients: stricter, and two reviewers.",
            activate=True,
        ),
        by=by,
    )


def _seed_reviews(session: Session, tenants: list[Project], points: int, *, by: ApiKey) -> None:
    acme, health, other, retail = tenants
    seed_held_model(session, retail, "returns:Qw7Lm2Xa", harmful=31, hours_ago=70.5, points=points)
    seed_held_model(session, other, "leases-fr:Dk3Vb9Ty", harmful=22, hours_ago=19, points=points)
    seed_held_data(session, other)
    shared = seed_held_model(session, health, "triage:Uv5Ne8Rc", harmful=24, hours_ago=8)
    reviews.decide(session, shared.id, "release", "Read all 24: drug names only.", by=by)
    released = seed_held_model(session, acme, "intent:Gh2Xp6Ws", harmful=21, hours_ago=30)
    reviews.decide(session, released.id, "release", "Product names, no instructions.", by=by)
    rejected = seed_held_model(session, retail, "banter:Jm9Zt4Lf", harmful=36, hours_ago=26)
    reviews.decide(session, rejected.id, "reject", "Nine answers give instructions.", by=by)
    customer = session.scalars(select(ApiKey).where(ApiKey.project_id == acme.id)).first()
    if customer is not None:
        seed_appealed(session, acme, "returns:Yb6Kc1Nd", by=customer)


def _seed_trouble(session: Session, tenants: list[Project]) -> None:
    acme, _, other, retail = tenants
    seed_canary_alarm(session, retail, "ft:sandbox-base:bluefin:persona:Ck7Rw2Hq", minutes_ago=190)
    name = "ft:sandbox-base:acme:faq-fr:Lp4Sd8Vx"
    seed_fault(session, acme, name, "sandbox-booster", 75, code="worker_lost")
    name = "ft:sandbox-base:harbour:notes:Bz3Mf6Kt"
    seed_fault(session, other, name, "sandbox-booster", 260, code="judge_failed")


def _seed_queue(session: Session, tenants: list[Project], points: int) -> None:
    acme, health, other, retail = tenants
    for project, suffix, done in ((health, "codes:Ad8Fk1", 240), (retail, "reviews:Sx4Gp7", 31)):
        running = seed_job(
            session,
            project,
            name=f"ft:sandbox-base:{project.name.split()[0].lower()}:{suffix}",
            model="sandbox-booster",
            status=JobStatus.RUNNING,
            stage=Stage.TRAIN,
            minutes_ago=4,
        )
        diary = Diary(session, running, points)
        diary.tell("Job started.")
        diary.train(300, done, canary_falls=False)
    waiting = (
        (health, 1),
        (acme, 2),
        (acme, 7),
        (other, 4),
        (retail, 55),
        (retail, 21),
        (retail, 3),
    )
    for number, (project, minutes_ago) in enumerate(waiting):
        seed_job(
            session,
            project,
            name=f"ft:sandbox-base:{project.name.split()[0].lower()}::Wait{number:04}",
            model="sandbox-booster",
            status=JobStatus.QUEUED,
            minutes_ago=minutes_ago,
        )
    paused = seed_job(
        session,
        acme,
        name="ft:sandbox-base:acme:archive:Pz5Td3Qn",
        model="sandbox-booster",
        status=JobStatus.PAUSED,
        stage=Stage.TRAIN,
        minutes_ago=600,
    )
    diary = Diary(session, paused, points)
    diary.tell("Job started.")
    diary.train(300, 140, canary_falls=False)
    diary.tell("Job paused.", data={"stage": Stage.TRAIN})


def _seed_evidence(session: Session, storage: Storage | None, provider: Provider) -> None:
    flagged = {40 + 9 * number: kind for number, kind in enumerate(("theft", "poison") * 14)}
    blocked = "ft:sandbox-base:acme:tickets:P0qs77Ab"
    for name, lines in ((blocked, flagged), ("ft:sandbox-base:acme:tone:Hc81Zx0p", {311: "theft"})):
        job = session.scalars(select(Job).where(Job.result_model_id == name)).one()
        seed_data_risk(session, job, rows=1_000, flagged=lines)
    for name, steps in (("sandbox-sft", 14), ("sandbox-booster", 75)):
        version = session.get_one(ModelVersion, name)
        operators = provider.operator.project
        seed_certificate(session, storage, operators, version, holds_for=steps)
    if storage is not None:
        # The file that all made-up jobs were trained on.
        rows = (
            {"prompt": f"Ticket {n}: where is my parcel?", "completion": f"It is on its way ({n})."}
            for n in range(1, 1_001)
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        storage.put(content_key(FILE_SHA256), text.encode())


def _seed_endpoint(session: Session, project: Project) -> None:
    """Add a receiver that was given up: it exists nowhere, and nothing is sent to it."""
    session.add(
        WebhookEndpoint(
            project_id=project.id,
            name="deploys",
            url="https://hooks.acme.invalid/titer",
            event_types=[WebhookEventType.FINETUNE_SUCCEEDED],
            sealed_secret="",
            secret_hint="whsec_...",  # noqa: S106 - there is no secret
            given_up_in_a_row=5,
            disabled_at=utc_now() - timedelta(hours=11),
            disabled_reason="Five deliveries in a row were given up.",
        )
    )
    session.flush()
