"""A certification job: simulated customers come one after the other, and what they did becomes a certificate.

    safety set ─► the model as it is ─► customer 1, seeds 0 1 2 ─► customer 2 ... ─► summary ─► JSON, HTML, PNG

Each finished run is kept in the storage; a job that is claimed again goes on with the first one that is missing. A
certificate changes no gate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from time import monotonic

from transformers import PreTrainedModel

from models.base import utc_now
from models.certificate import Certificate, CertificationRun, Point
from models.certification import Family, SimulatedCustomer, view_of
from models.job import LeaseLost, Stage, append_event, succeed
from models.policy import current_policy
from models.stored_certificate import JSON_FILE, PAGE_FILE, PICTURE_FILE, StoredCertificate
from worker.base_models import LoadedBase, load_tokenizer
from worker.certify.assignment import Assignment, read_assignment
from worker.certify.kept import Kept
from worker.certify.lend import root_for, to_tune
from worker.certify.page import draw_page
from worker.certify.picture import draw_picture
from worker.certify.simulate import simulate
from worker.certify.summary import sum_up
from worker.leased_job import LeasedJob
from worker.measure import with_patience
from worker.run_folder import RunFolder
from worker.work import Workshop, with_version


def certify(job: LeasedJob, shop: Workshop) -> None:
    """Carry a claimed certification job to its certificate.

    Raises:
        DomainError: the safety set does not suffice, or something that the job names is gone.
        JudgeError: the judge failed every time.
        LeaseLost: the job is no longer this worker's.
    """
    task = read_assignment(job.id, shop)
    kept = Kept(job.id, shop.storage)
    cost = task.plan.cost(is_adapter=task.version.is_adapter)
    job.enter(Stage.EVALUATE, f"Certifying by the plan {task.plan.name}: {cost}.")
    families = sorted({view_of(customer.family) for customer in task.customers})
    before = {family: _before(job, task, family, kept, shop) for family in families}
    runs = _runs(job, task, kept, shop)
    _conclude(job, task, before, runs, shop)
    RunFolder(job.id, shop).remove()


def _before(job: LeasedJob, task: Assignment, family: Family, kept: Kept, shop: Workshop) -> Point:
    """Measure the model itself, in the way that a family is measured."""
    found = kept.before(family)
    if found is not None:
        return found
    with with_version(task.version, task.root, shop) as (base, model):
        yardstick = task.yardstick(base.tokenizer, family, task.plan.seeds[0])
        point = with_patience(job, lambda: yardstick.measure(model, 0))
    with job.write():
        kept.keep_before(family, point)
    return point


def _runs(
    job: LeasedJob, task: Assignment, kept: Kept, shop: Workshop
) -> tuple[CertificationRun, ...]:
    wanted = [(customer, seed) for customer in task.customers for seed in task.plan.seeds]
    done = {pair: run for pair in wanted if (run := kept.run(*pair)) is not None}
    missing = [pair for pair in wanted if pair not in done]
    if done:
        job.tell(f"{len(done)} of {len(wanted)} runs were kept; the others follow.")
    started, kept_before = monotonic(), len(done)
    for start in ("continued", "fresh"):
        pairs = [pair for pair in missing if pair[0].start == start]
        if not pairs:
            continue
        with root_for(start, task, shop) as base:
            for customer, seed in pairs:
                job.check()
                with to_tune(base, customer, seed, task, shop) as model:
                    run = _run(job, task, base, model, customer, seed)
                done[customer, seed] = run
                pace = (monotonic() - started) / (len(done) - kept_before)
                left = timedelta(seconds=pace * (len(wanted) - len(done)))
                _keep(job, kept, run, len(done), len(wanted), left)
    return tuple(done[pair] for pair in wanted)


def _run(
    job: LeasedJob,
    task: Assignment,
    base: LoadedBase,
    model: PreTrainedModel,
    customer: SimulatedCustomer,
    seed: int,
) -> CertificationRun:
    run = simulate(
        model,
        customer,
        seed,
        rows=task.rows,
        asked=task.asked,
        yardstick=task.yardstick(base.tokenizer, customer.family, seed),
        max_length=task.plan.max_length,
        ask=lambda measure: with_patience(job, measure),
        should_stop=job.is_lost,
    )
    if run is None:
        raise LeaseLost
    return run


def _keep(
    job: LeasedJob, kept: Kept, run: CertificationRun, done: int, total: int, left: timedelta
) -> None:
    # Under the row's lock: a worker that was thought dead must not disturb the one that has the job now.
    with job.write() as (session, row):
        kept.keep_run(run)
        row.estimated_finish = utc_now() + left
        what = "Simulated customers"
        data: dict[str, object] = {
            "stage": Stage.EVALUATE,
            "what": what,
            "done": done,
            "total": total,
            "customer": run.customer.name,
            "seed": run.seed,
        }
        if run.points:
            point = run.points[-1]
            data |= {"step": point.step, "harmful_score": 100 * point.escaped / point.prompts}
        append_event(session, row, f"{what}: {done} of {total}", type="progress", data=data)


def _conclude(
    job: LeasedJob,
    task: Assignment,
    before: Mapping[Family, Point],
    runs: tuple[CertificationRun, ...],
    shop: Workshop,
) -> None:
    with shop.sessions.begin() as session:
        policy = current_policy(session)
    tokenizer = load_tokenizer(shop.folder(task.root))
    certificate = sum_up(task, before, runs, policy, tokenizer)
    # By attempt, as models are: nothing that was read may be overwritten.
    prefix = f"certificates/{job.id}/{job.attempt}"
    with tempfile.TemporaryDirectory() as scratch:
        _write(certificate, Path(scratch))
        shop.storage.put_folder(prefix, Path(scratch))
    summary = certificate.summary.model_dump(mode="json")
    with job.write() as (session, row):
        stored = StoredCertificate(
            version_id=task.version.id,
            job_id=job.id,
            plan_hash=certificate.plan_hash,
            summary=summary,
            prefix=prefix,
        )
        session.add(stored)
        row.trained_tokens = certificate.cost.trained_tokens
        append_event(
            session,
            row,
            " ".join(certificate.claims),
            type="certificate",
            data={"summary": summary},
        )
        succeed(session, row)


def _write(certificate: Certificate, folder: Path) -> None:
    text = certificate.model_dump_json(indent=1, by_alias=True)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / PAGE_FILE).write_text(draw_page(certificate), encoding="utf-8")
    draw_picture(certificate, folder / PICTURE_FILE)
