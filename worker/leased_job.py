"""A worker's grip on one job: a heartbeat that keeps the lease, and writes that only it may make.

The heartbeat is a thread. When the lease turns out to be gone (the job was cancelled, or this worker was
thought dead and another has it), `is_lost` becomes true, the training loop stops at its next step, and
every later write raises `LeaseLost`. When the job's owner wants it to pause, the lease stays this worker's,
and whatever asks `should_stop` or `check` is told to stop. Knows nothing of training.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from models.base import utc_now
from models.job import (
    Job,
    Lease,
    LeaseLost,
    PauseRequested,
    Stage,
    append_event,
    heartbeat,
    hold,
)
from models.session import SessionFactory
from worker.metrics import ATTEMPTS, HEARTBEAT_FAILURES
from worker.stages import Stages

log = structlog.get_logger(__name__)

#: Outcomes of an attempt that nothing went wrong in.
CARRIED, PAUSED = "carried", "paused"

# How often the worker speaks within one lease: three beats may be lost before the lease is.
BEATS_PER_LEASE = 4
# Progress of a long stage is told at most this often; each telling is a row.
PROGRESS_SECONDS = 1.0
# Training asks before every step whether to stop; the database is asked at most this often.
ASK_SECONDS = 1.0


class LeasedJob:
    """Use as a context manager; the heartbeat lives as long as the block."""

    def __init__(self, sessions: SessionFactory, lease: Lease, *, lease_seconds: int) -> None:
        """Hold `lease`, whose job was claimed a moment ago."""
        self.id = lease.job_id
        self.attempt = lease.attempt
        self.kind = lease.kind
        #: Why the worker lets go, as the metrics say it: carried as far as it goes, or what went wrong.
        self.outcome = CARRIED
        self._sessions = sessions
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._is_pausing = False
        self._asked = monotonic()
        self._stages = Stages(lease.job_id, lease.kind)
        # In this context, so that what it logs names the job too.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._beat,), name="heartbeat", daemon=True
        )
        self._progress_told = utc_now()

    def __enter__(self) -> Self:
        """Start the heartbeat."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the heartbeat; the lease itself ends with the job's status, or runs out."""
        self._stages.leave(None if self.is_well else self.outcome)
        ATTEMPTS.labels(self.kind, self.outcome).inc()
        self._ended.set()
        self._thread.join(timeout=self._lease_seconds)

    @property
    def is_well(self) -> bool:
        """Whether nothing has gone wrong so far."""
        return self.outcome in (CARRIED, PAUSED)

    def is_lost(self) -> bool:
        """Say whether the job is no longer this worker's."""
        return self._lost.is_set()

    def should_stop(self) -> bool:
        """Say whether to stop: the job is no longer this worker's, or is to pause. Asks the database."""
        if monotonic() - self._asked >= ASK_SECONDS and not self.is_lost():
            self._asked = monotonic()
            try:
                with self._sessions() as session:
                    self._is_pausing = hold(session, self._lease, to_write=False).is_pausing
            except LeaseLost:
                self._lost.set()
            except OperationalError:
                # The heartbeat will find out what has become of the lease.
                log.warning("question_failed", job_id=self.id)
        return self.is_lost() or self._is_pausing

    def check(self) -> None:
        """Go on only while the job is this worker's and is not to pause.

        Raises:
            LeaseLost: it is not this worker's.
            PauseRequested: it is to pause.
        """
        if self.is_lost():
            raise LeaseLost
        if self._is_pausing:
            raise PauseRequested

    def stop(self) -> NoReturn:
        """Let go, after `should_stop` has said so.

        Raises:
            LeaseLost: the job is not this worker's.
            PauseRequested: it is to pause; or was, until the wish was withdrawn: then it is queued again.
        """
        self.check()
        raise PauseRequested

    @contextmanager
    def write(self) -> Iterator[tuple[Session, Job]]:
        """Open one transaction with the job's row locked; it commits at the end of the block.

        Raises:
            LeaseLost: the job is no longer this worker's.
        """
        try:
            with self._sessions.begin() as session:
                job = hold(session, self._lease)
                self._is_pausing = job.is_pausing
                yield session, job
        except LeaseLost:
            self._lost.set()
            raise

    def tell(
        self,
        message: str,
        *,
        level: str = "info",
        type: str = "message",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a line to the job's log."""
        with self.write() as (session, job):
            append_event(session, job, message, level=level, type=type, data=data)

    def enter(self, stage: Stage, message: str) -> None:
        """Say which stage begins. How long it will take is known once it has a pace."""
        with self.write() as (session, job):
            job.stage = stage
            job.estimated_finish = None
            append_event(session, job, message, data={"stage": stage})
        self._stages.enter(stage)

    def progress(self, stage: Stage, what: str, done: int, total: int) -> None:
        """Tell how far a long stage is, about once a second.

        Raises:
            LeaseLost: the job is no longer this worker's.
            PauseRequested: it is to pause.
        """
        self.check()
        now = utc_now()
        if done < total and (now - self._progress_told).total_seconds() < PROGRESS_SECONDS:
            return
        self._progress_told = now
        self.tell(
            f"{what}: {done} of {total}",
            type="progress",
            data={"stage": stage, "what": what, "done": done, "total": total},
        )

    def _beat(self) -> None:
        while not self._ended.wait(self._lease_seconds / BEATS_PER_LEASE):
            try:
                with self._sessions.begin() as session:
                    job = heartbeat(session, self._lease, lease_seconds=self._lease_seconds)
                    self._is_pausing = job.is_pausing
            except LeaseLost:
                self._lost.set()
                return
            except OperationalError:
                # The database may come back before the lease runs out; work goes on meanwhile.
                HEARTBEAT_FAILURES.inc()
                log.warning("heartbeat_failed", job_id=self.id)
