"""Jobs of every kind: reading and cancelling them, and making those that fine-tune.

Every function takes a session and leaves the commit to its caller. Operators see every project's jobs.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import partial

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from api.deps import after_commit, enqueue
from api.files.intake import FINE_TUNE
from api.jobs.replay import Replay, find_replayed, request_hash
from api.jobs.schemas import CreateJob
from api.organization.quotas import check_job
from models.api_key import ApiKey, Project
from models.audit import record
from models.base import new_id
from models.data_risk import DataReview, Screening, screening_judges
from models.errors import DomainError
from models.file import File, get_file
from models.hyperparameters import (
    DpoHyperparameters,
    FinetuneHyperparameters,
    resolve_finetune,
)
from models.job import (
    TERMINAL,
    Job,
    JobEvent,
    JobKind,
    JobNotFound,
    JobStatus,
    Stage,
    append_event,
    cancel,
    lock_job,
    request_pause,
    resume,
)
from models.job_checkpoint import JobCheckpoint, resume_prefix
from models.model_version import (
    Gate,
    ModelBlocked,
    ModelVersion,
    VersionKind,
    get_version,
)
from models.review import Outcome, close_appeal
from models.rows import Conversation, Pair, check_first_row
from models.safety_set import HEADER, SafetySetHeader, parse_header
from models.storage import Storage
from models.tuning import TuningProtection

MIN_ROWS = 10
NOUNS = {
    JobKind.ALIGN: "alignment",
    JobKind.CERTIFY: "certification",
    JobKind.EVALUATE: "evaluation",
    JobKind.FINETUNE: "fine-tuning",
}
MAX_SEED = 2**31 - 1


class ModelNotAligned(DomainError):
    """The model is a base that has not been aligned; only aligned models can be fine-tuned."""

    code = "model_not_aligned"


class UnsupportedMethod(DomainError):
    """The methods are 'supervised' and 'dpo', each with its own parameters only."""

    code = "unsupported_method"


class UnsupportedOption(DomainError):
    """The request asks for something that Titer does not do."""

    code = "unsupported"


class WrongPurpose(DomainError):
    """The file was not uploaded for fine-tuning."""

    code = "invalid_file_purpose"


class TooFewRows(DomainError):
    """The training file has too few rows."""

    code = "invalid_n_examples"


def create_finetune(
    session: Session, storage: Storage, project: Project, asked: CreateJob, replay: Replay
) -> Job:
    """Make a fine-tuning job, or give the one that this same request made before.

    Raises:
        ModelNotFound: there is no such model for this project.
        ModelNotAligned: it is a raw base.
        ModelBlocked: it has not passed the gate.
        FileNotFound: a file is absent or another project's.
        WrongPurpose: a file is not a data set.
        TooFewRows: the training file has fewer than ten rows.
        UnsupportedMethod: another method than these two.
        InvalidRows: a file's rows are not of the kind that the method learns from.
        ProtectionNeedsRows: pairs of answers, on a model whose provider mixes safety rows into training.
        UnsupportedOption: two contradicting sets of hyper-parameters.
        TooManySteps: the job would be longer than any that is accepted.
        LearningRateTooHigh: the model's provider allows no such rate.
        NoScreeningJudge: screening was asked for, and the model's safety set has no judge for it.
        StorageMissing: the model's safety set is gone.
    """
    request_sha256 = request_hash(JobKind.FINETUNE, asked)
    earlier = find_replayed(session, project.id, replay, request_sha256)
    if earlier is not None:
        return earlier
    hyperparameters = chosen_hyperparameters(asked)
    model = tunable(session, asked.model, project.id)
    shape = Pair if isinstance(hyperparameters, DpoHyperparameters) else Conversation
    if asked.screen:
        # Found out now, not by the worker.
        screening_judges(_safety_header(storage, model))
    training = _data_set(session, project.id, asked.training_file, "training_file")
    rows = training.rows or 0
    if rows < MIN_ROWS:
        raise TooFewRows(
            f"Training file has {rows} example(s), but must have at least {MIN_ROWS} examples.",
            param="training_file",
        )
    check_first_row(storage.lines(training.storage_key), shape, param="training_file")
    validation = None
    if asked.validation_file is not None:
        validation = _data_set(session, project.id, asked.validation_file, "validation_file")
        check_first_row(storage.lines(validation.storage_key), shape, param="validation_file")
    seed = secrets.randbelow(MAX_SEED + 1) if asked.seed is None else asked.seed
    recipe = resolve_finetune(hyperparameters, rows=rows, seed=seed, tuning=_tuning(storage, model))
    recipe = recipe.model_copy(
        update={"screen": asked.screen, "evaluate_checkpoints": asked.evaluate_checkpoints}
    )
    job = Job(
        project_id=project.id,
        kind=JobKind.FINETUNE,
        model_id=model.id,
        result_model_id=tuned_name(model.root_id, project, asked.suffix),
        training_file_id=training.id,
        validation_file_id=validation.id if validation else None,
        suffix=asked.suffix,
        seed=seed,
        recipe=recipe.model_dump(mode="json"),
        integrations=[wanted.model_dump(mode="json") for wanted in asked.integrations or ()],
        tags=asked.metadata or {},
        replay_key=replay.key,
        request_sha256=request_sha256,
    )
    start(session, job)
    return job


def start(session: Session, job: Job) -> None:
    """Put a new job of any kind into the queue, if its project's quotas allow it."""
    check_job(session, job.project_id)
    session.add(job)
    session.flush()
    append_event(session, job, f"Created {NOUNS[JobKind(job.kind)]} job: {job.id}")
    # OpenAI's words, where there are files.
    queued = "Files validated, job is queued." if job.training_file_id else "The job is queued."
    append_event(session, job, queued)
    enqueue(session, job.id)


def tuned_name(root_id: str, project: Project, suffix: str | None) -> str:
    """Make the name of a tuned model, in the form that OpenAI's clients know."""
    organization = project.organization_id.removeprefix("org-")
    return f"ft:{root_id}:{organization}:{suffix or ''}:{new_id('', 8).removeprefix('-')}"


def chosen_hyperparameters(asked: CreateJob) -> FinetuneHyperparameters:
    """Give the hyper-parameters from whichever of their two places was used; their type says the method.

    Raises:
        UnsupportedMethod: the method is neither of the two, or comes with another's parameters.
        UnsupportedOption: both places are filled, and differ.
    """
    method = asked.method
    if method is not None:
        others = {"supervised", "dpo", "reinforcement"} - {method.type}
        if method.type not in ("supervised", "dpo") or any(
            getattr(method, name) is not None for name in others
        ):
            raise UnsupportedMethod(param="method")
    if method is not None and method.type == "dpo":
        if asked.hyperparameters is not None:
            raise UnsupportedOption(
                "`hyperparameters` is for supervised fine-tuning. Send `method.dpo.hyperparameters`.",
                param="hyperparameters",
            )
        return (method.dpo and method.dpo.hyperparameters) or DpoHyperparameters()
    nested = method.supervised.hyperparameters if method and method.supervised else None
    if nested is not None and asked.hyperparameters is not None and nested != asked.hyperparameters:
        raise UnsupportedOption(
            "`hyperparameters` and `method.supervised.hyperparameters` contradict each other. "
            "Send one of them.",
            param="hyperparameters",
        )
    return nested or asked.hyperparameters or FinetuneHyperparameters()


def tunable(session: Session, model_id: str, project_id: str) -> ModelVersion:
    """Give a model that the project may tune, kept from deletion until the transaction ends."""
    model = get_version(session, model_id, project_id=project_id)
    session.refresh(model, with_for_update={"read": True})
    # It may have gone while we waited.
    model = get_version(session, model_id, project_id=project_id)
    if model.kind == VersionKind.BASE:
        aligned = session.scalars(
            select(ModelVersion.id)
            .where(
                ModelVersion.root_id == model.root_id,
                ModelVersion.kind == VersionKind.ALIGNED,
                ModelVersion.gate == Gate.RELEASED,
                ModelVersion.deleted_at.is_(None),
            )
            .order_by(ModelVersion.created_at.desc())
            .limit(5)
        ).all()
        advice = (
            f"Use an aligned version of it: {', '.join(aligned)}."
            if aligned
            else "The provider must align it first (titer align, or POST /v1/alignment/jobs)."
        )
        raise ModelNotAligned(
            f"The model {model.id!r} has not been aligned, so it cannot be fine-tuned. {advice}",
            param="model",
        )
    refuse_unreleased(model)
    return model


def refuse_unreleased(model: ModelVersion) -> None:
    """Let only released models pass.

    Raises:
        ModelBlocked: with the gate's reasons.
    """
    if not model.is_released:
        reasons = " ".join(str(reason) for reason in model.gate_reasons)
        raise ModelBlocked(
            f"The model {model.id!r} has not passed the safety gate (it is {model.gate}). {reasons}".strip(),
            param="model",
        )


def list_jobs(
    session: Session,
    kind: JobKind,
    *,
    project_id: str | None,
    after: str | None,
    limit: int,
    metadata: Mapping[str, str] | None = None,
    without_metadata: bool = False,
) -> tuple[Sequence[Job], bool]:
    """Give one page of jobs, newest first, and whether more follow."""
    query = select(Job).where(Job.kind == kind)
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    if metadata:
        query = query.where(Job.tags.contains(dict(metadata)))
    if without_metadata:
        query = query.where(Job.tags == {})
    if after is not None:
        last = get_job(session, kind, after, project_id=project_id)
        query = query.where(tuple_(Job.created_at, Job.id) < tuple_(last.created_at, last.id))
    found = session.scalars(
        query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit + 1)
    ).all()
    return found[:limit], len(found) > limit


def get_job(session: Session, kind: JobKind, job_id: str, *, project_id: str | None) -> Job:
    """Give a job that the caller may see.

    Raises:
        JobNotFound: it is absent, of another kind, or another project's.
    """
    query = select(Job).where(Job.id == job_id, Job.kind == kind)
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    job = session.scalar(query)
    if job is None:
        raise JobNotFound(f"No job {job_id[:64]!r} in this project.", param="fine_tuning_job_id")
    return job


def unfinished_job(session: Session, kind: JobKind, model_id: str) -> str | None:
    """Give the job of this kind that is on a model and has not ended, if there is one."""
    query = select(Job.id).where(
        Job.kind == kind, Job.model_id == model_id, Job.status.not_in(TERMINAL)
    )
    return session.scalar(query.limit(1))


def cancel_job(
    session: Session,
    storage: Storage,
    kind: JobKind,
    job_id: str,
    *,
    project_id: str | None,
    by: ApiKey | None,
) -> Job:
    """Cancel a job, whatever it is doing. What it could have gone on from goes after the commit.

    Raises:
        JobNotFound: it is absent, of another kind, or another project's.
        IllegalTransition: it has ended already.
    """
    get_job(session, kind, job_id, project_id=project_id)
    job = lock_job(session, job_id)
    is_held = job.awaits_review
    cancel(session, job)
    # A worker that has the job tidies up as well; of a paused or a queued one nobody else would.
    after_commit(session, partial(storage.delete_folder, resume_prefix(job.id)))
    if is_held:
        _withdraw_review(session, job)
    # Whoever cancels many, and so takes further locks, records them together afterwards.
    if by is not None:
        record(
            session,
            actor=by,
            action="job.cancelled",
            subject=("job", job.id),
            project_id=job.project_id,
            details={"kind": job.kind},
        )
    return job


def _withdraw_review(session: Session, job: Job) -> None:
    """Nobody will decide any more, and what nobody released stays unused."""
    if job.stage == Stage.DATA_REVIEW:
        session.get_one(Screening, job.id).conclude_review(DataReview.WITHDRAWN)
        return
    version = session.get_one(ModelVersion, job.result_model_id)
    version.gate = Gate.BLOCKED
    version.gate_reasons = [*version.gate_reasons, "The job was cancelled before a decision."]
    close_appeal(session, job.id, Outcome.WITHDRAWN)


def pause_job(session: Session, kind: JobKind, job_id: str, *, project_id: str | None) -> Job:
    """Pause a job: a queued one at once, a running one as soon as its worker has let go of it.

    Raises:
        JobNotFound: it is absent, of another kind, or another project's.
        IllegalTransition: it has ended, is paused or pausing already, or waits for a person.
    """
    get_job(session, kind, job_id, project_id=project_id)
    job = lock_job(session, job_id)
    request_pause(session, job)
    return job


def resume_job(session: Session, kind: JobKind, job_id: str, *, project_id: str | None) -> Job:
    """Go on with a job that is paused, or about to be.

    Raises:
        JobNotFound: it is absent, of another kind, or another project's.
        IllegalTransition: it is neither.
    """
    get_job(session, kind, job_id, project_id=project_id)
    job = lock_job(session, job_id)
    resume(session, job)
    if job.status == JobStatus.QUEUED:
        enqueue(session, job.id)
    return job


def list_checkpoints(
    session: Session, job: Job, *, after: str | None, limit: int
) -> tuple[Sequence[JobCheckpoint], bool]:
    """Give one page of a job's checkpoints, newest first, and whether more follow."""
    query = select(JobCheckpoint).where(JobCheckpoint.job_id == job.id)
    if after is not None:
        last = session.scalar(
            select(JobCheckpoint.step).where(
                JobCheckpoint.id == after, JobCheckpoint.job_id == job.id
            )
        )
        if last is None:
            raise DomainError("There is no such checkpoint in this job.", param="after")
        query = query.where(JobCheckpoint.step < last)
    found = session.scalars(query.order_by(JobCheckpoint.step.desc()).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def list_events(
    session: Session, job: Job, *, after: str | None, limit: int
) -> tuple[Sequence[JobEvent], bool]:
    """Give one page of a job's log, newest first, and whether more follow."""
    query = select(JobEvent).where(JobEvent.job_id == job.id)
    if after is not None:
        last = session.scalar(
            select(JobEvent.sequence).where(JobEvent.id == after, JobEvent.job_id == job.id)
        )
        if last is None:
            raise DomainError("There is no such event in this job.", param="after")
        query = query.where(JobEvent.sequence < last)
    found = session.scalars(query.order_by(JobEvent.sequence.desc()).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def _data_set(session: Session, project_id: str, file_id: str, param: str) -> File:
    file = get_file(session, project_id, file_id)
    session.refresh(file, with_for_update={"read": True})
    file = get_file(session, project_id, file_id)
    if file.purpose != FINE_TUNE:
        raise WrongPurpose(
            f"The file {file.id} has purpose {file.purpose!r}; a data set has {FINE_TUNE!r}.",
            param=param,
        )
    return file


def _tuning(storage: Storage, model: ModelVersion) -> TuningProtection | None:
    """Give how the provider protects jobs on a model; its safety set says so."""
    return _safety_header(storage, model).tuning


def _safety_header(storage: Storage, model: ModelVersion) -> SafetySetHeader:
    return parse_header(storage.get(f"{model.safety_prefix}/{HEADER}"))
