"""Decisions on held data and models: release, rejection, evaluation anew, appeal, and the time that runs out.

    screen holds ─► job `running`, stage `data_review` ─► released: job `queued`, then trained │ rejected │ expired
    gate holds ─► job `running`, stage `review` ─► released │ rejected │ expired
                        ▲          └─► evaluated again: job `queued`, the kept adapter is measured, the gate decides
    gate blocks ─► job `failed` ─► appeal, once

What is reviewed is the training data until the job has made a model, and the model from then on. Every function
locks the job's row first and the screening's or the version's after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from api.deps import enqueue
from api.jobs.service import get_job
from models.api_key import ApiKey
from models.audit import SERVICE, Actor, record
from models.base import utc_now
from models.data_risk import DataReview, Screening
from models.errors import Conflict, DomainError, NotFound
from models.file import File
from models.job import (
    REEVALUATION,
    Job,
    JobKind,
    JobStatus,
    Stage,
    append_event,
    await_review,
    awaiting_review,
    fail,
    go_on,
    lock_job,
    move,
    reopen,
    succeed,
)
from models.model_version import Gate, ModelVersion
from models.policy import current_policy
from models.review import (
    Appeal,
    Outcome,
    ReviewApproval,
    close_appeal,
    forget_approvals,
    person,
)

Decision = Literal["release", "reject"]


class ReviewNotFound(NotFound):
    """No such review."""

    code = "review_not_found"


class NotHeld(Conflict):
    """The model does not wait for a decision."""

    code = "model_not_held"


class DataNotHeld(Conflict):
    """The job's training data does not wait for a decision."""

    code = "data_not_held"


class AlreadyApproved(Conflict):
    """You have approved this release already; another reviewer has to as well."""

    code = "already_approved"


class NotReevaluable(Conflict):
    """Only a model that is held, or whose job failed after it was trained, can be evaluated again."""

    code = "not_reevaluable"


class NotAppealable(Conflict):
    """Only a job whose model the gate blocked can be appealed."""

    code = "not_appealable"


class AlreadyAppealed(Conflict):
    """This job was appealed already; an appeal is made once."""

    code = "already_appealed"


class AppealNotFound(NotFound):
    """This job was not appealed."""

    code = "appeal_not_found"


def list_reviews(session: Session, *, after: str | None, limit: int) -> tuple[Sequence[Job], bool]:
    """Give one page of the jobs whose data or models wait for a decision, oldest first, and whether more follow."""
    since = func.coalesce(Job.held_at, Job.created_at)
    query = select(Job).where(awaiting_review())
    if after is not None:
        last = session.get(Job, after)
        if last is None:
            raise DomainError("There is no such review.", param="after")
        query = query.where(
            tuple_(since, Job.id) > tuple_(last.held_at or last.created_at, last.id)
        )
    found = session.scalars(query.order_by(since, Job.id).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def neighbours(session: Session, job: Job) -> tuple[str | None, str | None]:
    """Give the reviews that waited right before and right after one, whether it still waits or not."""
    since = func.coalesce(Job.held_at, Job.created_at)
    place = tuple_(since, Job.id)
    here = tuple_(job.held_at or job.created_at, job.id)
    waiting = select(Job.id).where(awaiting_review())
    before = waiting.where(place < here).order_by(since.desc(), Job.id.desc()).limit(1)
    after = waiting.where(place > here).order_by(since, Job.id).limit(1)
    return session.scalar(before), session.scalar(after)


def get_review(session: Session, job_id: str) -> Job:
    """Give a job that made a model or whose data was held, whether that still waits for a decision or not.

    Raises:
        ReviewNotFound: there is none.
    """
    job = session.get(Job, job_id)
    if job is None or not (_made_version(session, job.id) or held_data(session, [job])):
        raise ReviewNotFound(f"No review {job_id[:64]!r}.", param="review_id")
    return job


def decide(session: Session, job_id: str, decision: Decision, reason: str, *, by: ApiKey) -> Job:
    """Carry out a reviewer's decision on a job's held data or model.

    Released data sends the job on to training; every other decision ends it. Where the policy asks for two
    reviewers, the first release is an approval only, and the job goes on waiting.

    Raises:
        ReviewNotFound: no such job has made a model or had its data held.
        NotHeld: nobody waits for a decision on its model.
        DataNotHeld: nobody waits for a decision on its data.
        AlreadyApproved: the same reviewer cannot be the second one.
    """
    get_review(session, job_id)
    job = lock_job(session, job_id)
    version = _made_version(session, job_id, lock=True)
    if version is None:
        _decide_on_data(session, job, decision, reason, by=by)
    else:
        _decide_on_model(session, job, version, decision, reason, by=by)
    return job


def _decide_on_data(
    session: Session, job: Job, decision: Decision, reason: str, *, by: ApiKey
) -> None:
    if not job.awaits_review:
        raise DataNotHeld(param="review_id")
    screening = session.get_one(Screening, job.id, populate_existing=True)
    if decision == "release" and not _all_agree(session, job, None, reason, by=by):
        return
    is_released = decision == "release"
    verb = "released" if is_released else "rejected"
    screening.conclude_review(DataReview(verb), reason)
    append_event(
        session,
        job,
        f"A reviewer {verb} the training data: {reason}",
        level="info" if is_released else "warn",
        type="review",
        data={"decision": decision, "reason": reason, "key": by.id},
    )
    # The model, if it is held as well, is another question: nobody has approved that yet.
    forget_approvals(session, job.id)
    if is_released:
        go_on(session, job, stage=Stage.TRAIN)
        enqueue(session, job.id)
    else:
        fail(
            session,
            job,
            code="data_rejected",
            message=f"The training data was held for a person, who rejected it: {reason}",
            param="training_file",
        )
    _record(session, f"data.{verb}", job, None, reason, by=by)


def _decide_on_model(
    session: Session,
    job: Job,
    version: ModelVersion,
    decision: Decision,
    reason: str,
    *,
    by: ApiKey,
) -> None:
    if not job.awaits_review or version.is_released:
        raise NotHeld(f"The model {version.id!r} does not wait for a decision.", param="model")
    if decision == "release" and not _all_agree(session, job, version, reason, by=by):
        return
    is_released = decision == "release"
    verb = "released" if is_released else "rejected"
    version.gate = Gate.RELEASED if is_released else Gate.BLOCKED
    version.gate_reasons = [*version.gate_reasons, f"A reviewer {verb} it: {reason}"]
    append_event(
        session,
        job,
        f"A reviewer {verb} the model: {reason}",
        level="info" if is_released else "warn",
        type="review",
        data={"decision": decision, "reason": reason, "key": by.id},
    )
    if is_released:
        succeed(session, job)
    else:
        fail(
            session,
            job,
            code="harmful_score_exceeded",
            message=f"The model was held for a person, who rejected it: {reason}",
        )
    close_appeal(session, job.id, Outcome.RELEASED if is_released else Outcome.REJECTED)
    _record(session, f"model.{verb}", job, version, reason, by=by)


def reevaluate(session: Session, job_id: str, reason: str, *, by: ApiKey) -> Job:
    """Have a kept model measured and decided on anew, without training it again.

    For a model that is held, and for one whose job failed after it was trained: it was blocked, or its judge broke.

    Raises:
        ReviewNotFound: no such job has made a model or had its data held.
        NotReevaluable: the model is released, deleted, or still in the works; or a file of its job is gone.
    """
    get_review(session, job_id)
    job = lock_job(session, job_id)
    version = _made_version(session, job_id, lock=True)
    if version is None:
        raise NotReevaluable("The job has not made a model yet.", param="review_id")
    is_over = job.status == JobStatus.FAILED
    if version.is_released or version.deleted_at is not None or not (job.awaits_review or is_over):
        raise NotReevaluable(param="review_id")
    _keep_files(session, job)
    version.gate = Gate.PENDING
    version.gate_reasons = ["It is being evaluated again."]
    forget_approvals(session, job.id)
    if is_over:
        reopen(job, JobStatus.QUEUED)
    else:
        move(job, JobStatus.QUEUED)
        job.rung_at = None
    job.stage = Stage.EVALUATE
    append_event(
        session,
        job,
        f"A reviewer has the model evaluated again: {reason}",
        type=REEVALUATION,
        data={"reason": reason, "key": by.id},
    )
    enqueue(session, job.id)
    _record(session, "model.reevaluated", job, version, reason, by=by)
    return job


def appeal(session: Session, job_id: str, text: str, *, by: ApiKey) -> Appeal:
    """Put a blocked model before a person, once.

    Raises:
        JobNotFound: it is absent, no fine-tuning job, or another project's.
        AlreadyAppealed: it was appealed before.
        NotAppealable: its model was not blocked, or is gone.
    """
    get_job(session, JobKind.FINETUNE, job_id, project_id=by.project_id)
    job = lock_job(session, job_id)
    if session.get(Appeal, job.id) is not None:
        raise AlreadyAppealed(param="fine_tuning_job_id")
    version = _made_version(session, job.id, lock=True)
    if (
        job.status != JobStatus.FAILED
        or version is None
        or version.gate != Gate.BLOCKED
        or version.deleted_at is not None
    ):
        raise NotAppealable(param="fine_tuning_job_id")
    made = Appeal(job_id=job.id, key_id=by.id, text=text)
    session.add(made)
    forget_approvals(session, job.id)
    version.gate = Gate.HELD
    version.gate_reasons = [*version.gate_reasons, "The customer has appealed."]
    reopen(job, JobStatus.RUNNING)
    await_review(job, hours=current_policy(session, version.project_id).parsed().review_hours)
    append_event(
        session, job, "The block was appealed; the model is held until a person has decided."
    )
    _record(session, "model.appealed", job, version, None, by=by)
    return made


def get_appeal(session: Session, job_id: str, *, project_id: str | None) -> tuple[Appeal, Job]:
    """Give a job's appeal.

    Raises:
        JobNotFound: it is absent, no fine-tuning job, or another project's.
        AppealNotFound: it was not appealed.
    """
    job = get_job(session, JobKind.FINETUNE, job_id, project_id=project_id)
    found = session.get(Appeal, job.id)
    if found is None:
        raise AppealNotFound(param="fine_tuning_job_id")
    return found, job


def expire_review(session: Session, job_id: str, *, now: datetime) -> bool:
    """Reject held data, or block a held model, that nobody decided on in time; say whether there was any."""
    job = lock_job(session, job_id)
    if not job.awaits_review or job.review_expires_at is None or job.review_expires_at > now:
        return False
    version = _made_version(session, job.id, lock=True)
    if version is None:
        sentence = "Nobody decided on the held training data in time, so it was rejected."
        screening = session.get_one(Screening, job.id, populate_existing=True)
        screening.conclude_review(DataReview.EXPIRED)
        forget_approvals(session, job.id)
        fail(session, job, code="review_expired", message=sentence, param="training_file")
    else:
        sentence = "Nobody decided on the held model in time, so it was blocked."
        version.gate = Gate.BLOCKED
        version.gate_reasons = [*version.gate_reasons, sentence]
        fail(session, job, code="review_expired", message=sentence)
        close_appeal(session, job.id, Outcome.EXPIRED)
    _record(session, "review.expired", job, version, None, by=SERVICE)
    return True


def given_approvals(session: Session, job_id: str) -> Sequence[tuple[ReviewApproval, ApiKey]]:
    """Give who has approved a release so far, the first one first."""
    found = session.execute(
        select(ReviewApproval, ApiKey)
        .join(ApiKey, ApiKey.id == ReviewApproval.key_id)
        .where(ReviewApproval.job_id == job_id)
        .order_by(ReviewApproval.created_at, ReviewApproval.key_id)
    )
    return [(approval, key) for approval, key in found]


def has_approved(given: Sequence[tuple[ReviewApproval, ApiKey]], by: ApiKey) -> bool:
    """Whether the person behind a key is among those who approved: theirs cannot be the second word."""
    return person(by) in {person(key) for _, key in given}


def held_data(session: Session, jobs: Sequence[Job]) -> dict[str, Screening]:
    """Give the screenings whose rows the policy held for a person, decided or not, by the jobs' ids."""
    found = session.scalars(
        select(Screening).where(
            Screening.job_id.in_([job.id for job in jobs]), Screening.review.is_not(None)
        )
    )
    return {screening.job_id: screening for screening in found}


def made_versions(session: Session, jobs: Sequence[Job]) -> dict[str, ModelVersion]:
    """Give the versions that jobs have made, by the jobs' ids."""
    found = session.scalars(
        select(ModelVersion).where(ModelVersion.job_id.in_([job.id for job in jobs]))
    )
    return {version.job_id: version for version in found if version.job_id is not None}


def tenant_of(job: Job, version: ModelVersion | None) -> str | None:
    """Give the project whose policy a review goes by; None for the provider's own models."""
    # Of the provider's own jobs no data is held.
    return job.project_id if version is None else version.project_id


def _all_agree(
    session: Session, job: Job, version: ModelVersion | None, reason: str, *, by: ApiKey
) -> bool:
    """Note an approval if the policy wants several; say whether there are enough. No version: it is of the data."""
    needed = current_policy(session, tenant_of(job, version)).parsed().release_approvals
    if needed < 2:
        return True
    approvals = given_approvals(session, job.id)
    if has_approved(approvals, by):
        raise AlreadyApproved(param="review_id")
    given = {person(key) for _, key in approvals}
    session.add(ReviewApproval(job_id=job.id, key_id=by.id, reason=reason, created_at=utc_now()))
    session.flush()
    if len(given) + 1 >= needed:
        return True
    append_event(
        session,
        job,
        f"A reviewer approved the release; {needed - len(given) - 1} more must agree: {reason}",
        type="review",
        data={"decision": "approve", "reason": reason, "key": by.id},
    )
    what = "data" if version is None else "model"
    _record(session, f"{what}.release_approved", job, version, reason, by=by)
    return False


def _keep_files(session: Session, job: Job) -> None:
    """Make sure that the job's files are there, and stay: a job that has not ended keeps them."""
    wanted = {job.training_file_id, job.validation_file_id} - {None}
    found = session.scalars(
        select(File.id)
        .where(File.id.in_(wanted), File.deleted_at.is_(None))
        .with_for_update(read=True)
    ).all()
    if len(found) < len(wanted):
        raise NotReevaluable(
            "A file of the job was deleted, so its model cannot be measured as it was.",
            param="review_id",
        )


def _made_version(session: Session, job_id: str, *, lock: bool = False) -> ModelVersion | None:
    query = select(ModelVersion).where(ModelVersion.job_id == job_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    return session.scalar(query)


def _record(
    session: Session,
    action: str,
    job: Job,
    version: ModelVersion | None,
    reason: str | None,
    *,
    by: ApiKey | Actor,
) -> None:
    record(
        session,
        actor=by,
        action=action,
        subject=("model", version.id) if version else ("job", job.id),
        project_id=tenant_of(job, version),
        reason=reason,
        details={"job": job.id} if version else {"file": job.training_file_id},
    )
