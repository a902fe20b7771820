"""Checkpoints that customers see: the adapter at the end of each epoch, kept, and measured where that is asked for.

    end of an epoch ─► adapter stored, version `pending`, metrics written; the third before the last is dropped
    after training  ─► (only with `evaluate_checkpoints`) each kept one: measured ─► policy ─► released or blocked

The last epoch needs no weights of its own: its checkpoint is the job's model. A checkpoint is never held for a
person, who decides on the job's model: what is not released is blocked.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import structlog
from peft import PeftModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.base import utc_now
from models.job import Job, LeaseLost, append_event, keep_progress
from models.job_checkpoint import KEPT_BEFORE_LAST, JobCheckpoint, checkpoint_name
from models.model_version import Gate, ModelVersion, VersionKind
from models.rows import Row
from models.storage import StorageMissing
from models.tuning import AppliedProtection
from worker import lora
from worker.leased_job import LeasedJob
from worker.measure import TunedOn, measure
from worker.trainers.loop import StepMetrics
from worker.training_log import curve_point
from worker.verdict import decide_on, tell_verdict
from worker.work import Work, Workshop

log = structlog.get_logger(__name__)

NOT_EVALUATED = (
    "This checkpoint was not evaluated, so it cannot be used. Create the job with "
    '"evaluate_checkpoints": true to have the gate decide on checkpoints.'
)
RESHAPED = (
    "The provider of the base repairs or scales adapters after training, which checkpoints are taken before: "
    "only the job's model can be used."
)


class EpochCheckpoints:
    """Call it with each step's metrics; it acts at the ends of epochs."""

    def __init__(
        self, job: LeasedJob, work: Work, model: PeftModel, shop: Workshop, *, safety_rows: int
    ) -> None:
        """Take the model that is being trained; `safety_rows` were mixed into its data."""
        self._job, self._work, self._model, self._shop = job, work, model, shop
        self._ends = work.recipe.epoch_ends
        self._safety_rows = safety_rows

    def __call__(self, metrics: StepMetrics) -> None:
        """Keep a checkpoint, if the step ends an epoch and an earlier attempt has not kept it.

        Raises:
            LeaseLost: the job is no longer this worker's.
        """
        if metrics.step not in self._ends or self._is_there(metrics.step):
            return
        version = None
        if metrics.step < metrics.total_steps:
            version = self._stored_version(metrics.step)
        try:
            dropped = self._write(metrics, version)
        except LeaseLost:
            if version is not None:
                self._shop.storage.delete_folder(str(version.source["prefix"]))
            raise
        for prefix in dropped:
            self._shop.storage.delete_folder(prefix)

    def _write(self, metrics: StepMetrics, version: ModelVersion | None) -> list[str]:
        """Write the checkpoint down; give where weights lie that are kept no longer."""
        with self._job.write() as (session, row):
            if version is not None:
                session.add(version)
            session.add(
                JobCheckpoint(
                    job_id=row.id,
                    step=metrics.step,
                    version_name=version.id if version else self._work.result_id,
                    metrics=curve_point(metrics),
                )
            )
            append_event(
                session,
                row,
                f"Checkpoint created at step {metrics.step}.",
                data={"step": metrics.step},
            )
            session.flush()
            return _drop_older(session, row) if version else []

    def _is_there(self, step: int) -> bool:
        with self._shop.sessions() as session:
            query = select(JobCheckpoint.id).where(
                JobCheckpoint.job_id == self._job.id, JobCheckpoint.step == step
            )
            return session.scalar(query) is not None

    def _stored_version(self, step: int) -> ModelVersion:
        work, shop = self._work, self._shop
        # By attempt: a worker that was thought dead must not write over what the living one has kept.
        folder = f"epochs/{work.job_id}"
        for name in shop.storage.folders(folder):
            if name.endswith(f"-{step}"):
                # An attempt that was killed before it had written down what it stored.
                shop.storage.delete_folder(f"{folder}/{name}")
        prefix = f"{folder}/{self._job.attempt}-{step}"
        with tempfile.TemporaryDirectory() as scratch:
            lora.save(self._model, Path(scratch), base_model=work.root.id)
            sha256 = shop.storage.put_folder(prefix, Path(scratch))
        return ModelVersion(
            id=checkpoint_name(work.result_id, step),
            kind=VersionKind.TUNED,
            gate=Gate.PENDING,
            gate_reasons=[RESHAPED if work.recipe.tuning.reshapes else NOT_EVALUATED],
            project_id=work.project_id,
            parent_id=work.start.id,
            root_id=work.root.id,
            source={"prefix": prefix},
            safety_prefix=work.start.safety_prefix,
            method=work.start.method,
            recipe=self._record(step),
            data_hashes={"adapter": sha256, "safety_set": work.safety.hash, **work.file_hashes},
        )

    def _record(self, step: int) -> dict[str, object]:
        recipe = self._work.recipe
        record = recipe.model_dump(mode="json", exclude={"tuning"})
        record["checkpoint"] = {"job": self._work.job_id, "step": step}
        if not recipe.tuning.is_off:
            applied = AppliedProtection(tuning=recipe.tuning, safety_rows=self._safety_rows)
            record["protection"] = applied.model_dump(mode="json")
        return record


def evaluate_checkpoints(
    job: LeasedJob,
    work: Work,
    validation: list[Row],
    shop: Workshop,
    tuned_on: TunedOn,
    told: set[str],
) -> None:
    """Measure the kept checkpoints, the oldest first, and let the policy decide on each.

    What an earlier attempt has decided stays.

    Raises:
        JudgeError: the judge failed every time.
        LeaseLost: the job is no longer this worker's.
        PauseRequested: it is to pause.
    """
    if work.recipe.tuning.reshapes:
        return
    for step, version in _undecided(job, shop):
        subject = f"the checkpoint of step {step}"
        try:
            report = measure(job, work, version, validation, shop, tuned_on, told, subject=subject)
        except StorageMissing:
            # Its owner has deleted it in the meantime.
            log.info("checkpoint_gone", step=step)
            continue
        with job.write() as (session, row):
            keep_progress(row)
            kept = session.get_one(ModelVersion, version.id)
            # Nobody waits for a checkpoint: what would be held for a person is blocked.
            verdict, rules = decide_on(session, kept, report, job_id=row.id, may_hold=False)
            tell_verdict(session, row, report, rules, verdict, checkpoint=(step, version.id))


def _undecided(job: LeasedJob, shop: Workshop) -> list[tuple[int, ModelVersion]]:
    with shop.sessions() as session:
        found = session.execute(
            select(JobCheckpoint.step, ModelVersion)
            .join(ModelVersion, ModelVersion.id == JobCheckpoint.version_name)
            .where(
                JobCheckpoint.job_id == job.id,
                ModelVersion.job_id.is_(None),
                ModelVersion.gate == Gate.PENDING,
                ModelVersion.deleted_at.is_(None),
            )
            .order_by(JobCheckpoint.step)
        )
        return [(step, version) for step, version in found]


def _drop_older(session: Session, job: Job) -> list[str]:
    """Forget the weights of all but the newest few; give where they lie."""
    kept = session.scalars(
        select(ModelVersion)
        .join(JobCheckpoint, JobCheckpoint.version_name == ModelVersion.id)
        .where(
            JobCheckpoint.job_id == job.id,
            ModelVersion.job_id.is_(None),
            ModelVersion.deleted_at.is_(None),
        )
        .order_by(JobCheckpoint.step.desc())
    ).all()
    older = kept[KEPT_BEFORE_LAST:]
    for version in older:
        version.deleted_at = utc_now()
    return [str(version.source["prefix"]) for version in older]
