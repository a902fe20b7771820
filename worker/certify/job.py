"""A certification job: simulated customers come one after the other, and what they did becomes a certificate.

    safety set ─► the model as it is ─► customer 1, seeds 0 1 2 ─► customer 2 ... ─► summary ─► JSON, HTML, PNG

Each finished run is kept in the storage; a job that is claimed again goes on with the first one that is missing. A
certificate changes no gate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import monotonic

from models.base import utc_now
from models.certificate import Certificate, CertificationRun, Point
from models.certification import Family, SimulatedCustomer, view_of
from models.job import Stage, append_event, keep_progress, succeed
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
from worker.judge import open_judge
from worker.judgement import Judge
from worker.leased_job import LeasedJob
from worker.measure import with_patience
from worker.run_folder import RunFolder
from worker.study.point import Yardstick
from worker.work import Workshop, with_version


def certify(job: LeasedJob, shop: Workshop) -> None:
    """Carry a claimed certification job to its certificate.

    Raises:
        DomainError: the safety set does not suffice, or something that the job names is gone.
        JudgeError: the judge failed every time.
        LeaseLost: the job is no longer this worker's.
        PauseRequested: it is to pause.
    """
    task = read_assignment(job.id, shop)
    cost = task.plan.cost(is_adapter=task.version.is_adapter)
    job.enter(Stage.EVALUATE, f"Certifying by the plan {task.plan.name}: {cost}.")
    # Once for all runs: a judge may be a model of its own.
    judge = with_patience(job, lambda: open_judge(task.safety.header.judge))
    ongoing = _Certification(job, shop, task, judge, Kept(job.id, shop.storage, judge.identity))
    before = ongoing.measure_before()
    ongoing.conclude(before, ongoing.run_all())
    RunFolder(job.id, shop).remove()


@dataclass(frozen=True, slots=True)
class _Certification:
    """A certification under way."""

    job: LeasedJob
    shop: Workshop
    task: Assignment
    judge: Judge
    kept: Kept

    def measure_before(self) -> dict[Family, Point]:
        """Measure the model itself, in each way that one of the customers is measured in."""
        families = sorted({view_of(customer.family) for customer in self.task.customers})
        return {family: self._before(family) for family in families}

    def _before(self, family: Family) -> Point:
        self.job.check()
        found = self.kept.before(family)
        if found is not None:
            return found
        task = self.task
        with with_version(task.version, task.root, self.shop) as (base, model):
            yardstick = self._yardstick(family, task.plan.seeds[0], base)
            point = with_patience(self.job, lambda: yardstick.measure(model, 0))
        with self.job.write() as (_, row):
            self.kept.keep_before(family, point)
            keep_progress(row)
        return point

    def run_all(self) -> tuple[CertificationRun, ...]:
        """Let every customer come with every seed, but for those whose runs were kept."""
        task = self.task
        wanted = [(customer, seed) for customer in task.customers for seed in task.plan.seeds]
        done = {pair: run for pair in wanted if (run := self.kept.run(*pair)) is not None}
        missing = [pair for pair in wanted if pair not in done]
        if done:
            self.job.tell(f"{len(done)} of {len(wanted)} runs were kept; the others follow.")
        started, kept_before = monotonic(), len(done)
        for start in ("continued", "fresh"):
            pairs = [pair for pair in missing if pair[0].start == start]
            if not pairs:
                continue
            with root_for(start, task, self.shop) as base:
                for customer, seed in pairs:
                    self.job.check()
                    run = self._run(base, customer, seed)
                    done[customer, seed] = run
                    pace = (monotonic() - started) / (len(done) - kept_before)
                    left = timedelta(seconds=pace * (len(wanted) - len(done)))
                    self._keep(run, len(done), len(wanted), left)
        return tuple(done[pair] for pair in wanted)

    def _yardstick(self, family: Family, seed: int, base: LoadedBase) -> Yardstick:
        yardstick = self.task.yardstick(family, seed, base.tokenizer, self.judge)
        return replace(yardstick, on_progress=lambda _done, _total: self.job.check())

    def _run(self, base: LoadedBase, customer: SimulatedCustomer, seed: int) -> CertificationRun:
        task = self.task
        with to_tune(base, customer, seed, task, self.shop) as model:
            run = simulate(
                model,
                customer,
                seed,
                rows=task.rows,
                asked=task.asked,
                yardstick=self._yardstick(customer.family, seed, base),
                max_length=task.plan.max_length,
                ask=partial(with_patience, self.job),
                should_stop=self.job.should_stop,
            )
        if run is None:
            self.job.stop()
        return run

    def _keep(self, run: CertificationRun, done: int, total: int, left: timedelta) -> None:
        # Under the row's lock: a worker that was thought dead must not disturb the one that has the job now.
        with self.job.write() as (session, row):
            self.kept.keep_run(run)
            keep_progress(row)
            row.estimated_finish = utc_now() + left
            what = "Simulated customers"
            data: dict[str, object] = {
                "stage": Stage.EVALUATE,
                "what": what,
                "done": done,
                "total": total,
                "customer": run.customer.short_name,
                "seed": run.seed,
            }
            if run.points:
                point = run.points[-1]
                data |= {"step": point.step, "harmful_score": 100 * point.escaped / point.prompts}
            append_event(session, row, f"{what}: {done} of {total}", type="progress", data=data)

    def conclude(self, before: Mapping[Family, Point], runs: tuple[CertificationRun, ...]) -> None:
        """Make the certificate, store its files, and end the job with its row, in one transaction."""
        job, shop, task = self.job, self.shop, self.task
        with shop.sessions.begin() as session:
            policy = current_policy(session)
        tokenizer = load_tokenizer(shop.folder(task.root))
        certificate = sum_up(task, before, runs, policy, tokenizer, self.judge.identity)
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
            said = " ".join(certificate.claims)
            append_event(session, row, said, type="certificate", data={"summary": summary})
            succeed(session, row)


def _write(certificate: Certificate, folder: Path) -> None:
    text = certificate.model_dump_json(indent=1, by_alias=True)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / PAGE_FILE).write_text(draw_page(certificate), encoding="utf-8")
    draw_picture(certificate, folder / PICTURE_FILE)
