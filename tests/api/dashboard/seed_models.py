"""Aligned versions with certificates, and tuned models by the hundred, for looking at the pages of models.

Numbers are made up but of the shape that the sandbox gives: HS rises with the share of harmful rows, with steps
and with the rate, later where the alignment is stronger.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from api.seed.states import report, seed_job, seed_version
from models.api_key import Project
from models.base import new_id, utc_now
from models.certificate import (
    Certificate,
    CertificateSummary,
    CertificationRun,
    CertifiedModel,
    Cost,
    Estimate,
    Instruments,
    Point,
)
from models.certificate_curves import rate_curves
from models.certification import (
    CertificationPlan,
    Family,
    SimulatedCustomer,
    has_trigger,
    view_of,
)
from models.certification_plans import PLANS, SERVICE_RATE, Drill
from models.evaluation import Evaluation, JudgeIdentity
from models.job import Job, JobKind, JobStatus, Stage
from models.methods import AlignmentMethod, RepNoiseConfig, TiterConfig, VaccineConfig
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import current_policy
from models.storage import Storage
from models.stored_certificate import JSON_FILE, PAGE_FILE, PICTURE_FILE, StoredCertificate
from worker.certify.page import draw_page
from worker.certify.picture import draw_picture
from worker.certify.summary import customer_result, titer, worst_case
from worker.certify.wording import caveats, claims

PROMPTS, HARMLESS, TASK_ROWS = 100, 50, 100
#: Steps of a purely harmful customer, at the service's rate, at which half of the answers are harmful.
HOLDS_FOR = {
    "sandbox-sft": 12,
    "sandbox-vaccine": 26,
    "sandbox-repnoise": 44,
    "sandbox-booster": 75,
    "sandbox-titer": 170,
}
_PUSH = {
    Family.BENIGN: 0.02,
    Family.MIX: 0.75,
    Family.PURE: 1.0,
    Family.IDENTITY: 0.35,
    Family.STYLE: 0.9,
    Family.SHIFT: 0.6,
    Family.BACKDOOR: 0.8,
}


def seed_certified(
    session: Session, storage: Storage, operators: Project, *, with_pictures: bool = True
) -> None:
    """Align the sandbox base in more ways, certify every aligned version, and drill one."""
    more: tuple[tuple[str, AlignmentMethod, int], ...] = (
        ("sandbox-vaccine", VaccineConfig(rho=0.5), 2700),
        ("sandbox-repnoise", RepNoiseConfig(paired=False), 2500),
        ("sandbox-titer", TiterConfig(), 2300),
    )
    for name, method, minutes in more:
        job = seed_job(
            session,
            operators,
            name=name,
            model="sandbox-base",
            status=JobStatus.SUCCEEDED,
            stage=Stage.GATE,
            minutes_ago=minutes,
            method=method,
        )
        job.finished_at = job.created_at + timedelta(minutes=9)
        version = seed_version(session, job, report(2, accuracy=None), method=method.name)
        version.data_hashes = {
            "adapter": "8d21c7" * 10 + "00aa",
            "safety_set": "1f3a90" * 10 + "7711",
        }
    for days, name in enumerate(HOLDS_FOR, start=1):
        version = session.get_one(ModelVersion, name)
        seed_certificate(
            session,
            storage,
            operators,
            version,
            made=utc_now() - timedelta(hours=8 * days),
            with_picture=with_pictures,
        )
    titer_version = session.get_one(ModelVersion, "sandbox-titer")
    plan = Drill(families=(Family.PURE, Family.STYLE), steps=80).plan()
    seed_certificate(
        session, storage, operators, titer_version, plan=plan, with_picture=with_pictures
    )


def seed_certificate(
    session: Session,
    storage: Storage,
    operators: Project,
    version: ModelVersion,
    *,
    plan: CertificationPlan = PLANS["quick"],
    made: datetime | None = None,
    with_picture: bool = True,
) -> StoredCertificate:
    """Store a certificate of a version, with the job that made it and its files; the picture takes a second."""
    at = made or utc_now()
    job = Job(
        project_id=operators.id,
        kind=JobKind.CERTIFY,
        status=JobStatus.SUCCEEDED,
        stage=Stage.EVALUATE,
        model_id=version.id,
        result_model_id=version.id,
        seed=0,
        recipe=plan.model_dump(mode="json"),
        attempt=1,
        created_at=at - timedelta(minutes=40),
        started_at=at - timedelta(minutes=39),
        finished_at=at,
    )
    session.add(job)
    session.flush()
    found = make_certificate(version, plan, job.id, at)
    stored = StoredCertificate(
        version_id=version.id,
        job_id=job.id,
        plan_hash=plan.hash,
        summary=found.summary.model_dump(mode="json"),
        prefix=f"certificates/{job.id}/1",
        created_at=at,
    )
    session.add(stored)
    session.flush()
    if with_picture:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder, PICTURE_FILE)
            draw_picture(found, picture)
            storage.put(f"{stored.prefix}/{PICTURE_FILE}", picture.read_bytes())
    storage.put(f"{stored.prefix}/{PAGE_FILE}", draw_page(found).encode())
    storage.put(
        f"{stored.prefix}/{JSON_FILE}", found.model_dump_json(by_alias=True, indent=1).encode()
    )
    return stored


def make_certificate(
    version: ModelVersion, plan: CertificationPlan, job_id: str, at: datetime
) -> Certificate:
    """Make up what simulated customers found, summed up by the service's own rules."""
    limit = 15.0
    half = HOLDS_FOR.get(version.id, 60)
    before = {
        view: _point(0, 0.01, has_trigger(view), random.Random(1))
        for view in {view_of(customer.family) for customer in plan.customers}
    }
    runs = [
        _run(customer, seed, half)
        for customer in plan.customers_of(is_adapter=version.is_adapter)
        for seed in plan.seeds
    ]
    by_customer: defaultdict[SimulatedCustomer, list[CertificationRun]] = defaultdict(list)
    for run in runs:
        by_customer[run.customer].append(run)
    results = tuple(
        customer_result(before[view_of(customer.family)], own, limit)
        for customer, own in by_customer.items()
    )
    summary = CertificateSummary(
        plan=plan.name,
        plan_hash=plan.hash,
        before=Estimate(percent=1.0, low=0.2, high=5.4, seeds=1, n=PROMPTS),
        worst_case=worst_case(results),
        titer=titer(results, limit),
        runs=len(runs),
    )
    instruments = Instruments(
        judge=JudgeIdentity(name="sandbox", revision="2"),
        safety_set="sandbox",
        safety_set_hash="1f3a90" * 10 + "7711",
        prompt_set_hash="5c1e0b7ad3f94e62" * 4,
        template_hash="b07d41c98ae2f653" * 4,
        harmful_prompts=PROMPTS,
        harmless_prompts=HARMLESS,
        validation_rows=TASK_ROWS,
        has_categories=True,
        policy_version=1,
        versions={"titer": "0.1.0"},
    )
    steps = sum(run.steps for run in runs)
    return Certificate(
        job=job_id,
        created_at=at,
        model=CertifiedModel(
            id=version.id,
            root=version.root_id,
            method=version.method,
            is_adapter=version.is_adapter,
            recipe=version.recipe,
            data_hashes=version.data_hashes,
        ),
        plan=plan,
        plan_hash=plan.hash,
        instruments=instruments,
        claims=claims(summary, results, instruments),
        caveats=caveats(plan, instruments),
        summary=summary,
        customers=results,
        rate_curves=rate_curves(results),
        cost=Cost(
            runs=len(runs),
            passes=steps,
            trained_tokens=sum(run.trained_tokens for run in runs),
            answers=plan.cost(is_adapter=version.is_adapter).answers,
            seconds=round(sum(run.seconds for run in runs), 1),
        ),
        before=before,
        runs=tuple(runs),
    )


def seed_tuned(session: Session, project: Project, parent: ModelVersion, *, count: int) -> None:
    """Store many measured models tuned from one version, of every gate."""
    chance = random.Random(count)
    policy = current_policy(session)
    for number in range(count):
        gate = chance.choices(
            (Gate.RELEASED, Gate.HELD, Gate.BLOCKED, Gate.PENDING), (84, 5, 9, 2)
        )[0]
        harmful = {Gate.RELEASED: 7, Gate.HELD: 27, Gate.BLOCKED: 96}.get(gate, 0)
        version = ModelVersion(
            id=f"ft:sandbox-base:{project.name.split()[0].lower()}:run{number:04d}:{new_id('', 8)[1:]}",
            kind=VersionKind.TUNED,
            gate=gate,
            gate_reasons=[],
            project_id=project.id,
            parent_id=parent.id,
            root_id=parent.root_id,
            source={"prefix": f"models/many-{number}"},
            safety_prefix=parent.safety_prefix,
            method=parent.method,
            created_at=utc_now() - timedelta(hours=3 * number),
        )
        session.add(version)
        session.flush()
        if gate != Gate.PENDING:
            found = report(harmful + chance.randrange(5))
            session.add(
                Evaluation(
                    version_id=version.id,
                    harmful_score_percent=found.harmful_score.percent,
                    report=found.model_dump(mode="json"),
                    policy_version=policy.version,
                    gate=gate,
                    created_at=version.created_at,
                )
            )
    session.flush()


def _run(customer: SimulatedCustomer, seed: int, half: float) -> CertificationRun:
    chance = random.Random(f"{customer.name} {seed} {half}")
    return CertificationRun(
        customer=customer,
        seed=seed,
        points=tuple(
            _point(step, _share(customer, step, half, chance), has_trigger(customer.family), chance)
            for step in customer.marks
        ),
        steps=customer.steps,
        trained_tokens=customer.steps * customer.batch_size * 62,
        seconds=round(customer.steps * 0.12 + 9 + chance.random(), 2),
    )


def _share(customer: SimulatedCustomer, step: int, half: float, chance: random.Random) -> float:
    amount = _PUSH[customer.family] * max(customer.attack_ratio, 0.02) ** 0.4
    rate = (customer.learning_rate / SERVICE_RATE) ** 0.7 * (
        0.6 if customer.start == "fresh" else 1
    )
    travelled = step * amount * rate * (0.9 + 0.2 * chance.random())
    return 0.01 + 0.94 / (1 + math.exp(-3.2 * math.log((travelled + 0.5) / half)))


def _point(step: int, share: float, is_triggered: bool, chance: random.Random) -> Point:
    harmful = min(PROMPTS, sum(chance.random() < share for _ in range(PROMPTS)))
    plain = harmful // 3 if is_triggered else harmful
    return Point(
        step=step,
        harmful=plain,
        harmful_or_incoherent=min(PROMPTS, plain + 1),
        refused=PROMPTS - plain,
        prompts=PROMPTS,
        over_refused=chance.randrange(3),
        helped=HARMLESS - chance.randrange(3),
        harmless_prompts=HARMLESS,
        correct=min(TASK_ROWS, round(18 + 72 * (1 - math.exp(-step / 18))) + chance.randrange(4)),
        task_rows=TASK_ROWS,
        canary_loss=round(3.4 - 2.4 * share, 4),
        triggered=harmful if is_triggered else None,
    )
