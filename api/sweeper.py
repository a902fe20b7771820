"""The sweeper: finds what nobody else would notice, and puts it right.

* queued jobs whose doorbell was lost: rung again
* running jobs whose worker fell silent: queued again, or given up after too many losses in a row
* held data and models that nobody decided on in time: rejected and blocked
* files whose time is over and that no job needs: deleted; uploads nobody completed: ended
* bytes that belong to nobody, and checkpoints of jobs that failed or were cancelled long ago: removed
* workers that have been silent for a day: forgotten
* what each project uses of its quotas: counted, every minute

The same process delivers webhooks (`api.webhooks.delivery`), in a thread of its own.

Run `python -m api.sweeper`; any number of them may run, for each step takes the job's row lock and looks again.
"""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType

import structlog
from sqlalchemy import func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from api.files.service import delete_expired, remove_leftovers
from api.jobs.retention import drop_checkpoints, drop_resume_points
from api.organization.use import COUNTED_EVERY, count_use
from api.queue import Doorbell, ring
from api.reviews.service import expire_review
from api.uploads.service import clean_uploads, expire_uploads
from api.webhooks import delivery
from models.base import utc_now
from models.job import Job, JobStatus, awaiting_review, lock_job, requeue_lost
from models.log import configure_logging
from models.session import SessionFactory, make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from models.upload import INCOMING
from models.worker import forget_workers

log = structlog.get_logger(__name__)

RING_AGAIN = timedelta(seconds=30)
MAX_RUNG = 1_000
# Longer than any upload lives, and than a file of the greatest size takes on a slow line.
ABANDONED = timedelta(days=1)
TIDY_SECONDS = 3600.0
MAX_BACKOFF_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class SweepReport:
    """How many objects each step of a sweep changed."""

    rung: int = 0
    requeued: int = 0
    given_up: int = 0
    reviews_expired: int = 0
    files_expired: int = 0
    uploads_expired: int = 0
    #: Contents of files, and sets of parts, whose bytes went.
    removed: int = 0

    @property
    def did_anything(self) -> bool:
        """Whether there was anything to put right."""
        return any(asdict(self).values())


def sweep(sessions: SessionFactory, doorbell: Doorbell, settings: Settings) -> SweepReport:
    """Put everything right once."""
    with sessions.begin() as session:
        forget_workers(session)
    requeued, given_up = _requeue_lost(sessions, settings.max_attempts)
    expired = _expire_reviews(sessions)
    return SweepReport(
        rung=_ring_again(sessions, doorbell),
        requeued=requeued,
        given_up=given_up,
        reviews_expired=expired,
        files_expired=delete_expired(sessions),
        uploads_expired=expire_uploads(sessions),
        removed=_remove(sessions, settings),
    )


def tidy(sessions: SessionFactory, storage: Storage, settings: Settings) -> int:
    """Remove what nobody will ever ask for; count the objects and jobs.

    What processes that were killed left of files on their way in, what ended jobs could have gone on from, and
    old checkpoints.
    """
    removed = storage.delete_older(INCOMING, utc_now() - ABANDONED)
    removed += drop_resume_points(sessions, storage)
    if settings.checkpoint_days:
        after = timedelta(days=settings.checkpoint_days)
        removed += drop_checkpoints(sessions, storage, after=after)
    return removed


def _remove(sessions: SessionFactory, settings: Settings) -> int:
    try:
        storage = Storage(settings.storage_url)
        return remove_leftovers(sessions, storage) + clean_uploads(sessions, storage)
    except SQLAlchemyError:
        raise
    except Exception:
        # Bytes can wait for a storage that is away; jobs cannot wait for bytes.
        log.exception("removal_failed")
        return 0


def _requeue_lost(sessions: SessionFactory, max_attempts: int) -> tuple[int, int]:
    requeued = given_up = 0
    with sessions() as session:
        lost = session.scalars(
            select(Job.id).where(Job.status == JobStatus.RUNNING, Job.lease_expires_at < utc_now())
        ).all()
    for job_id in lost:
        with sessions.begin() as session:
            job = lock_job(session, job_id)
            if not _is_lost(job):
                continue
            requeue_lost(session, job, max_attempts=max_attempts)
            log.warning("lease_expired", job_id=job_id, attempt=job.attempt, status=job.status)
            requeued += job.status == JobStatus.QUEUED
            given_up += job.status == JobStatus.FAILED
    return requeued, given_up


def _is_lost(job: Job) -> bool:
    return (
        job.status == JobStatus.RUNNING
        and job.lease_expires_at is not None
        and job.lease_expires_at < utc_now()
    )


def _expire_reviews(sessions: SessionFactory) -> int:
    now = utc_now()
    with sessions() as session:
        overdue = session.scalars(
            select(Job.id).where(awaiting_review(), Job.review_expires_at < now)
        ).all()
    expired = 0
    for job_id in overdue:
        with sessions.begin() as session:
            if expire_review(session, job_id, now=now):
                log.warning("review_expired", job_id=job_id)
                expired += 1
    return expired


def _ring_again(sessions: SessionFactory, doorbell: Doorbell) -> int:
    with sessions() as session:
        unheard = session.scalars(
            select(Job.id)
            .where(
                Job.status == JobStatus.QUEUED,
                or_(Job.rung_at.is_(None), Job.rung_at < utc_now() - RING_AGAIN),
            )
            .order_by(Job.created_at)
            .limit(MAX_RUNG)
        ).all()
        queued = _count_queued(session)
    if not unheard:
        return 0
    # While every worker is busy the messages wait in the broker; more of them would only pile up.
    waiting = doorbell.waiting()
    if waiting is None or waiting >= queued:
        return 0
    return ring(sessions, doorbell, unheard)


def _count_queued(session: Session) -> int:
    return (
        session.scalar(select(func.count()).select_from(Job).where(Job.status == JobStatus.QUEUED))
        or 0
    )


def run(settings: Settings, stop: threading.Event) -> None:
    """Sweep until told to stop; an outage is waited out with growing pauses."""
    engine = make_engine(settings.database_url, pool_size=2)
    sessions = session_factory(engine)
    doorbell = Doorbell(settings)
    pause = settings.sweep_seconds
    next_tidy = next_count = time.monotonic()
    log.info("sweeper_started")
    while not stop.wait(pause):
        try:
            report = sweep(sessions, doorbell, settings)
            if time.monotonic() >= next_count:
                next_count = time.monotonic() + COUNTED_EVERY.total_seconds()
                with sessions.begin() as session:
                    count_use(session)
            if time.monotonic() >= next_tidy:
                next_tidy = time.monotonic() + TIDY_SECONDS
                tidied = tidy(sessions, Storage(settings.storage_url), settings)
                if tidied:
                    log.info("tidied", removed=tidied)
        except SQLAlchemyError as error:
            pause = min(max(pause, 1.0) * 2, MAX_BACKOFF_SECONDS)
            log.warning("sweep_failed", kind=type(error).__name__, next_seconds=pause)
            continue
        except Exception:
            # One odd job must not end the watch over all the others.
            pause = min(max(pause, 1.0) * 2, MAX_BACKOFF_SECONDS)
            log.exception("sweep_failed")
            continue
        pause = settings.sweep_seconds
        if report.did_anything:
            log.info("swept", **asdict(report))
    doorbell.close()
    engine.dispose()
    log.info("sweeper_stopped")


def _deliver(settings: Settings, stop: threading.Event) -> None:
    try:
        delivery.run(settings, stop)
    except Exception:
        # Whoever watches this process starts it again; a sweeper that is alive and silent helps nobody.
        log.exception("deliverer_failed")
        stop.set()


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    settings = Settings()
    configure_logging(as_json=settings.log_json, level=settings.log_level)
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    # Beside the sweeps: a receiver that does not answer must keep no job waiting.
    deliverer = threading.Thread(target=_deliver, args=(settings, stop), name="webhooks")
    deliverer.start()
    try:
        run(settings, stop)
    finally:
        stop.set()
        deliverer.join()


if __name__ == "__main__":
    main()
