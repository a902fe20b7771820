"""READ THIS FIRST: the way of one job, from a claimed lease to a verdict.

    finetune   file ─► screen ─► tokens ─► base + parent's adapter ─► train ─► store ─► evaluate ─► gate
    align      safety set ─► rows ─► tokens ─► base + fresh adapter ──► train ─► store ─► evaluate ─► gate
    certify    simulated customers on an aligned model, one after the other ─► certificate (worker.certify)
    evaluate   a model as it is ─► evaluate, and no gate (worker.evaluation_job)

The screen runs only where the policy or the customer asks for it (`worker.screen`). Where the policy holds what
it found, the worker lets go; once a person has released the rows the job is claimed again and goes on from there.

Where the provider asks for more protection (`models.tuning`), rows are added before a customer's job is
trained, and its adapter is reshaped before or while it is evaluated (`worker.protection`).

At the end of each epoch a customer's job leaves a checkpoint (`worker.epoch_checkpoints`); where that was
asked for they are evaluated before the model itself.

Every stage leaves its result in the database or the storage before the next begins, and is skipped when
the result is there. So a job that is claimed again, after a crash, goes on where it was: from the last
checkpoint while training, from the stored adapter afterwards. A job that is paused stops in the same way, but
writes its checkpoint first.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import time_ns
from typing import cast

import structlog
import torch
from obstore.exceptions import BaseError as StorageFault
from peft import PeftModel
from safetensors import SafetensorError
from sqlalchemy.exc import OperationalError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models import tracing
from models.errors import DomainError
from models.fair_queue import claim_next
from models.job import (
    Job,
    JobKind,
    Lease,
    LeaseLost,
    PauseRequested,
    Stage,
    append_event,
    claim,
    fail,
    keep_progress,
    park,
)
from models.methods import DpoConfig, LisaConfig, Method, RepNoiseConfig, SafeGradConfig
from models.model_version import ModelVersion, VersionKind
from models.rows import Pair, Row
from models.safety_set import balanced
from models.storage import Storage
from worker import lora
from worker.base_models import LoadedBase, load_tokenizer, save_base
from worker.certify.job import certify
from worker.data import Encoded, Example, check_prompts, encode_data_set, encode_rows
from worker.epoch_checkpoints import EpochCheckpoints, evaluate_checkpoints
from worker.evaluation_job import evaluate
from worker.leased_job import PAUSED, LeasedJob
from worker.measure import TunedOn, measure
from worker.prompt_frames import find_frames
from worker.protection import canary_reference, record, safety_rows, settle, tell_fall
from worker.report import attack_warning, overlap_warning
from worker.run_folder import RunFolder
from worker.screen import screen
from worker.screen_outcome import DataHeld
from worker.task_accuracy import check_answers
from worker.trackers.sending import tracked
from worker.trainers.checkpoint import CheckpointMismatch
from worker.trainers.loop import StepMetrics, TrainResult, train
from worker.trainers.methods import rule_for
from worker.training_log import Send, TrainingLog
from worker.validation import Score, Validation, score_pairs, score_rows
from worker.verdict import conclude
from worker.work import Work, Workshop, read_rows, read_work, to_train

log = structlog.get_logger(__name__)

# Checkpoints that a run leaves on its way; each costs a moment, so short runs leave fewer.
CHECKPOINTS_PER_RUN = 10
MIN_CHECKPOINT_STEPS = 25

#: Outcomes of an attempt that no other job should meet at once: the job is tried again when its lease has run out.
INFRASTRUCTURE_FAILED, MACHINE_FAILED = "infrastructure_failed", "machine_failed"
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
DEVICE_FAULTS = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "NCCL error")
# The libraries say of a full device memory what they say of a broken device.
MEMORY_FAULTS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def run(job_id: str, shop: Workshop) -> None:
    """Claim this job and carry it as far as it goes. Never raises for what a job can do wrong."""
    began_ns = time_ns()
    with shop.sessions.begin() as session:
        lease = claim(session, job_id, owner=shop.owner, lease_seconds=shop.lease_seconds)
    _run(lease, shop, began_ns)


def run_next(shop: Workshop) -> str | None:
    """Claim the job whose turn it is among those that wait, and carry it as far as it goes.

    Returns:
        Why the worker let go of it (`LeasedJob.outcome`); none: no job waited.
    """
    began_ns = time_ns()
    with shop.sessions.begin() as session:
        lease = claim_next(
            session,
            owner=shop.owner,
            lease_seconds=shop.lease_seconds,
            jobs_running=shop.jobs_running,
        )
    return _run(lease, shop, began_ns)


def _run(lease: Lease | None, shop: Workshop, began_ns: int) -> str | None:
    if lease is None:
        log.info("job_not_claimable")
        return None
    facts: dict[str, tracing.Fact] = {
        "titer.job.id": lease.job_id,
        "titer.job.kind": lease.kind,
        "titer.job.attempt": lease.attempt,
    }
    with (
        structlog.contextvars.bound_contextvars(job_id=lease.job_id, attempt=lease.attempt),
        tracing.span("job", facts, parent=lease.traceparent, started_ns=began_ns) as span,
    ):
        tracing.begin("claim", facts, started_ns=began_ns).end()
        log.info("job_claimed", kind=lease.kind)
        with LeasedJob(shop.sessions, lease, lease_seconds=shop.lease_seconds) as job:
            _carry_leased(job, lease, shop)
            span.note({"titer.job.outcome": job.outcome})
            if not job.is_well:
                span.fail(job.outcome)
        return job.outcome


def _carry_leased(job: LeasedJob, lease: Lease, shop: Workshop) -> None:
    try:
        _carry(job, shop)
    except LeaseLost:
        job.outcome = "lease_lost"
        log.info("lease_lost")
        _forget_if_over(lease.job_id, shop)
    except PauseRequested:
        job.outcome = PAUSED
        log.info("job_pausing")
        _park(job, shop)
    except DataHeld:
        log.info("data_held", attempt=lease.attempt)
    except DomainError as error:
        job.outcome = "failed"
        log.info("job_failed", code=error.code)
        # The fault may have struck while an adapter was half on.
        shop.bases.drop()
        _fail(job, shop, error.code, error.message, error.param, error.extra())
    except (OperationalError, StorageFault):
        # A fault of ours, not of the job: the lease runs out and another attempt is made.
        job.outcome = INFRASTRUCTURE_FAILED
        log.exception("infrastructure_failed")
        shop.bases.drop()
    except Exception as error:
        if _is_out_of_memory(error):
            job.outcome = "out_of_memory"
            log.exception("out_of_memory")
            shop.bases.drop()
            _fail(
                job,
                shop,
                "out_of_memory",
                "The job does not fit the worker's memory. Use a smaller batch_size or shorter rows.",
            )
            return
        if _is_of_this_machine(error):
            # As above; and this process is not to touch its device again.
            job.outcome = MACHINE_FAILED
            log.exception("machine_failed")
            return
        # The traceback is for the operator; the customer gets a sentence without its text.
        job.outcome = "crashed"
        log.exception("job_crashed")
        shop.bases.drop()
        _fail(
            job,
            shop,
            "internal_error",
            "The worker met an unexpected fault; it has been logged.",
        )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in MEMORY_FAULTS)
    )


def _is_of_this_machine(error: Exception) -> bool:
    """Whether a fault is of the accelerator or of the disk: other jobs would meet it here as well."""
    if isinstance(error, OSError):
        return error.errno in DISK_FAULTS
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in str(error) for number in DISK_FAULTS)
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in DEVICE_FAULTS)
    )


def _carry(job: LeasedJob, shop: Workshop) -> None:
    kind = _kind(job, shop)
    if kind == JobKind.CERTIFY:
        certify(job, shop)
        return
    if kind == JobKind.EVALUATE:
        evaluate(job, shop)
        return
    work = read_work(job.id, shop)
    training = _training_rows(work, shop.storage)
    validation = read_rows(work.validation_file, shop.storage, "validation_file", work.row_shape)
    version = _made_version(work, shop)
    work, training = screen(job, work, training, shop, is_trained=version is not None)
    known = _known(work, training)
    if version is None:
        for warning in known.warnings:
            job.tell(warning.message, level="warn", data={"warning": warning.code})
        version = _make_version(job, work, training, validation, shop)
    told = {warning.code for warning in known.warnings}
    if work.recipe.evaluate_checkpoints:
        evaluate_checkpoints(job, work, validation, shop, known, told)
    report = settle(
        job,
        work,
        version,
        shop,
        lambda made: measure(job, work, made, validation, shop, known, told),
    )
    conclude(job, work, report, shop.storage)
    RunFolder(job.id, shop).remove()


def _kind(job: LeasedJob, shop: Workshop) -> str:
    with shop.sessions() as session:
        return session.get_one(Job, job.id).kind


def _made_version(work: Work, shop: Workshop) -> ModelVersion | None:
    with shop.sessions() as session:
        version = session.get(ModelVersion, work.result_id)
        return version if version is not None and version.job_id == work.job_id else None


def _known(work: Work, training: list[Row]) -> TunedOn:
    """Say before anything is trained what its rows mean for the scores."""
    # The safety set's own rows were compared when it was loaded, and hide nothing.
    if work.kind == JobKind.ALIGN:
        warning = attack_warning(work.safety.harmful_categories, work.recipe.balance)
        return TunedOn(warnings=(warning,) if warning is not None else ())
    warning = overlap_warning(work.safety.overlap(training))
    return TunedOn(
        (warning,) if warning is not None else (), find_frames(training, seed=work.result_id)
    )


def _make_version(
    job: LeasedJob,
    work: Work,
    training: list[Row],
    validation: list[Row],
    shop: Workshop,
) -> ModelVersion:
    # Rows are tokenized before the base is loaded: a faulty row must cost no GPU time.
    tokenizer = load_tokenizer(shop.folder(work.root))
    limit = work.recipe.train.max_length
    added = safety_rows(work, len(training))
    encoded = encode_data_set(training, tokenizer, limit)
    encoded.examples.extend(encode_rows(added, tokenizer, limit, param="safety_set"))
    simulated = _simulated(work, tokenizer)
    checked = encode_data_set(validation, tokenizer, limit, param="validation_file")
    check_answers(validation, work.recipe.scorer, param="validation_file")
    check_prompts(validation, tokenizer, limit, param="validation_file")
    base = shop.base(work.root)
    with to_train(base, work, shop) as model, tracked(job, work, shop) as send:
        result = _train(job, work, base, model, encoded, checked, len(added), simulated, send, shop)
        return _store(job, work, base, model, result, len(added), shop)


def _training_rows(work: Work, storage: Storage) -> list[Row]:
    if work.kind == JobKind.ALIGN:
        return list(work.safety.alignment)
    return read_rows(work.training_file, storage, "training_file", work.row_shape)


@dataclass(frozen=True, slots=True)
class _Simulated:
    """What the simulated attack of an alignment learns; for paired rules, each row's refusal as well."""

    harmful: Sequence[Example] = ()
    refusals: Sequence[Example] = ()


def _simulated(work: Work, tokenizer: PreTrainedTokenizerBase) -> _Simulated:
    # A customer's job never simulates an attack: that is the alignment stage's work.
    if work.kind != JobKind.ALIGN:
        return _Simulated()
    recipe, safety = work.recipe, work.safety
    rows = balanced(safety.harmful, safety.harmful_labels(recipe.balance))
    is_paired = isinstance(recipe.method, RepNoiseConfig) and recipe.method.paired
    encode = partial(
        encode_rows, tokenizer=tokenizer, max_length=recipe.train.max_length, param="safety_set"
    )
    return _Simulated(encode(rows), encode(safety.refusals_of(rows)) if is_paired else ())


def _train(
    job: LeasedJob,
    work: Work,
    base: LoadedBase,
    model: PreTrainedModel | PeftModel,
    encoded: Encoded,
    validation: Encoded,
    added: int,
    simulated: _Simulated,
    send: Send,
    shop: Workshop,
) -> TrainResult:
    recipe = work.recipe
    noun = "pairs" if work.row_shape is Pair else "rows"
    rows = f"{len(encoded.examples) - added} {noun}" + (
        f" and {added} safety rows" if added else ""
    )
    job.enter(Stage.TRAIN, f"Training on {rows}, {recipe.train.steps} steps.")
    limit = recipe.train.max_length
    safety = work.safety.alignment if isinstance(recipe.method, LisaConfig | SafeGradConfig) else ()
    folder = RunFolder(job.id, shop, attempt=job.attempt)
    folder.fetch()

    def keep(checkpoint: Path, step: int) -> None:
        # A worker that was thought dead must not disturb the one that has the job now.
        with job.write():
            pass
        folder.keep(checkpoint)
        with job.write() as (_, row):
            keep_progress(row, step)

    tell = TrainingLog(job, every=recipe.metrics_every, send=send)
    keep_epoch = None
    if work.kind == JobKind.FINETUNE and isinstance(model, PeftModel):
        keep_epoch = EpochCheckpoints(job, work, model, shop, safety_rows=added)

    def tell_and_keep(metrics: StepMetrics) -> None:
        tell(metrics)
        if keep_epoch is not None:
            keep_epoch(metrics)

    epoch_ends = recipe.epoch_ends
    canary_length, canary_before = canary_reference(work, shop)
    run = partial(
        train,
        model,
        rule_for(recipe.method),
        encoded.examples,
        recipe.train,
        pad_id=base.pad_id,
        harmful=simulated.harmful,
        refusals=simulated.refusals,
        safety=encode_rows(safety, base.tokenizer, limit, param="safety_set"),
        non_preferred=encoded.non_preferred,
        canary=encode_rows(work.safety.canary, base.tokenizer, canary_length, param="safety_set"),
        canary_every=recipe.canary_every,
        canary_stop=recipe.tuning.canary_stop,
        canary_before=canary_before,
        epoch_ends=epoch_ends,
        validate=Validation(
            _score(model, validation, recipe.method, base.pad_id),
            len(validation.examples),
            recipe.train,
            recipe.canary_every,
            epoch_ends,
        ),
        on_step=tell_and_keep,
        should_stop=job.should_stop,
        checkpoint_folder=folder.path,
        checkpoint_every=max(MIN_CHECKPOINT_STEPS, recipe.train.steps // CHECKPOINTS_PER_RUN),
        on_checkpoint=keep,
    )
    try:
        result = run()
    except CheckpointMismatch:
        # An upgrade between two attempts may have changed what a run is told by. Nothing was read from it yet.
        log.warning("checkpoint_of_another_release")
        with job.write() as (session, row):
            row.furthest_step = 0
            append_event(
                session,
                row,
                "The checkpoint is of another release of the service; training starts anew.",
                level="warn",
            )
        folder.remove()
        result = run()
    if result.stopped:
        job.stop()
    return result


def _score(
    model: PreTrainedModel | PeftModel, validation: Encoded, method: Method, pad_id: int
) -> Score:
    if isinstance(method, DpoConfig) and validation.examples:
        return score_pairs(model, validation, pad_id, beta=method.beta)
    return score_rows(model, validation.examples, pad_id)


def _store(
    job: LeasedJob,
    work: Work,
    base: LoadedBase,
    model: PreTrainedModel | PeftModel,
    result: TrainResult,
    added: int,
    shop: Workshop,
) -> ModelVersion:
    # By attempt: a worker that was thought dead and wakes must not overwrite what was judged meanwhile.
    prefix = f"models/{work.job_id}/{job.attempt}"
    is_full = work.recipe.parameters == "full"
    with RunFolder(job.id, shop, attempt=job.attempt).scratch() as scratch:
        if is_full:
            save_base(
                lora.detach(model) if isinstance(model, PeftModel) else model,
                base.tokenizer,
                Path(scratch),
            )
        else:
            lora.save(cast(PeftModel, model), Path(scratch), base_model=work.root.id)
        hashes = {
            "weights" if is_full else "adapter": shop.storage.put_folder(prefix, Path(scratch))
        }
    hashes |= {"safety_set": work.safety.hash, **work.file_hashes}
    is_aligned = work.kind == JobKind.ALIGN
    version = ModelVersion(
        id=work.result_id,
        kind=VersionKind.ALIGNED if is_aligned else VersionKind.TUNED,
        project_id=None if is_aligned else work.project_id,
        parent_id=work.start.id,
        root_id=work.result_id if is_full else work.root.id,
        job_id=work.job_id,
        source={"prefix": prefix, **({"form": "weights"} if is_full else {})},
        safety_prefix=work.start.safety_prefix,
        method=work.recipe.method.name if is_aligned else work.start.method,
        recipe=record(work.recipe, result, added),
        data_hashes=hashes,
    )
    with job.write() as (session, row):
        session.add(version)
        keep_progress(row)
        row.trained_tokens = result.tokens
        if result.canary_fell:
            is_further = work.start.kind == VersionKind.TUNED
            tell_fall(session, row, work.recipe, result, is_further=is_further)
        append_event(
            session,
            row,
            f"New model created: {version.id}. It can be used once the gate releases it.",
            data={"model": version.id, "trained_tokens": result.tokens},
        )
    return version


def _park(job: LeasedJob, shop: Workshop) -> None:
    try:
        with job.write() as (session, row):
            park(session, row)
    except LeaseLost:
        log.info("lease_lost_while_parking")
        _forget_if_over(job.id, shop)
    except OperationalError:
        # The lease runs out, and the sweeper pauses the job.
        log.exception("pause_not_written")
    else:
        RunFolder(job.id, shop, attempt=job.attempt).leave()


def _forget_if_over(job_id: str, shop: Workshop) -> None:
    with shop.sessions() as session:
        job = session.get(Job, job_id)
        is_over = job is None or job.is_terminal
    if is_over:
        RunFolder(job_id, shop).remove()


def _fail(
    job: LeasedJob,
    shop: Workshop,
    code: str,
    message: str,
    param: str | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    try:
        with job.write() as (session, row):
            fail(session, row, code=code, message=message, param=param, data=facts)
    except LeaseLost:
        log.info("lease_lost_while_failing")
        return
    except OperationalError:
        # The database is away: the lease runs out, and the next attempt meets the same fault.
        log.exception("failure_not_written")
        return
    RunFolder(job.id, shop).remove()
