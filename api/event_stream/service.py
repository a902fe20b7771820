"""A job's log as server-sent events: what there is already, then what comes, until the job has ended.

The table is the truth: each stream looks into it when its job has changed, in a short transaction in a thread,
and holds no connection in between. It also looks unasked: seldom, or every second while changes are not heard of. A
stream ends after a while even if its job does not, so that a key that was revoked sees no more than that; clients go
on from the last id they saw.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from anyio.to_thread import run_sync
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import render
from api.event_stream.changes import Bell, Changes
from api.jobs.schemas import EventObject
from api.jobs.wire import show_job
from api.metrics.counts import OPEN_STREAMS
from api.schemas import Schema
from models.errors import DomainError
from models.job import Job, JobEvent
from models.session import SessionFactory

log = structlog.get_logger(__name__)

#: How long a stream goes without a look when nothing is told: while changes are heard of, and while not.
LOOK_ANYWAY_SECONDS = 15.0
POLL_SECONDS = 1.0
#: A job that tells much is looked at this often.
LOOK_AGAIN_SECONDS = 0.25
HEARTBEAT_SECONDS = 15.0
LONGEST_SECONDS = 15 * 60.0
#: Of the streams that a process keeps open, one project has no more than this share.
SHARE_OF_A_PROJECT = 0.1
#: At one look; a long log comes in several.
MAX_EVENTS = 200
HEADERS = {
    "cache-control": "no-store",
    # Proxies that buffer would turn live into late.
    "x-accel-buffering": "no",
}


class TooManyStreams(DomainError):
    """Too many event streams are open. Close one, or poll the events."""

    status_code = 429
    type = "rate_limit_exceeded"
    code = "too_many_streams"


class Slots:
    """Counts the streams that are open, for each project and together. Belongs to one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of_a_project = max(1, int(limit * SHARE_OF_A_PROJECT))
        self._open: Counter[str] = Counter()

    @contextmanager
    def taken(self, project_id: str) -> Iterator[None]:
        """Hold one for the length of the block.

        Raises:
            TooManyStreams: there is none left, or none for this project.
        """
        is_full = self._open.total() >= self._limit
        if is_full or self._open[project_id] >= self._of_a_project:
            raise TooManyStreams
        self._open[project_id] += 1
        OPEN_STREAMS.inc()
        try:
            yield
        finally:
            OPEN_STREAMS.dec()
            self._open[project_id] -= 1
            if not self._open[project_id]:
                del self._open[project_id]


@dataclass(frozen=True, slots=True)
class Beginning:
    """A job that the caller may see, and the last of its events that the caller has seen."""

    job_id: str
    #: The caller's, whose streams are counted.
    project_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Look:
    """What one look into the table gave."""

    text: str
    sequence: int
    is_over: bool


def begin(session: Session, job: Job, *, project_id: str, last_event_id: str | None) -> Beginning:
    """Find where a stream begins: after the event with this id, or at the log's first line.

    Raises:
        DomainError: the job has no such event.
    """
    if not last_event_id:
        return Beginning(job.id, project_id, 0)
    sequence = session.scalar(
        select(JobEvent.sequence).where(
            JobEvent.id == last_event_id[:256], JobEvent.job_id == job.id
        )
    )
    if sequence is None:
        raise DomainError("There is no such event in this job.", param="Last-Event-ID")
    return Beginning(job.id, project_id, sequence)


class EventStream(Response):
    """Takes a slot and a bell when it begins to be sent, and gives both back however that ends.

    Args:
        slots: the process's.
        changes: what rings the bell.
        project_id: the caller's, whose streams are counted.
        topic: what the bell rings for.
        content: the stream itself, told by the bell when to look.
    """

    def __init__(
        self,
        slots: Slots,
        changes: Changes,
        *,
        project_id: str,
        topic: str,
        content: Callable[[Bell], AsyncIterator[str]],
    ) -> None:
        super().__init__()
        self._slots = slots
        self._changes = changes
        self._project_id = project_id
        self._topic = topic
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, or the refusal."""
        try:
            with self._slots.taken(self._project_id), self._changes.bell(self._topic) as bell:
                response = StreamingResponse(
                    self._content(bell), headers=HEADERS, media_type="text/event-stream"
                )
                await response(scope, receive, send)
        except TooManyStreams as error:
            await render(error)(scope, receive, send)


async def follow(
    sessions: SessionFactory, changes: Changes, beginning: Beginning, bell: Bell
) -> AsyncIterator[str]:
    """Give a job's events as they come, heartbeats while none come, and at its end the job."""
    sequence = beginning.sequence
    ends_at = time.monotonic() + LONGEST_SECONDS
    spoke_at = time.monotonic()
    # Goes out at once, so that the caller knows that it is connected.
    yield ": connected\n\n"
    while time.monotonic() < ends_at:
        try:
            look = await run_sync(look_up, sessions, beginning.job_id, sequence)
        except SQLAlchemyError as error:
            log.warning("event_stream_broken", kind=type(error).__name__)
            return
        if look.text:
            yield look.text
            spoke_at = time.monotonic()
        if look.is_over:
            return
        is_behind = look.sequence - sequence >= MAX_EVENTS
        sequence = look.sequence
        if not is_behind:
            unasked = LOOK_ANYWAY_SECONDS if changes.is_hearing else POLL_SECONDS
            due = min(spoke_at + HEARTBEAT_SECONDS, ends_at) - time.monotonic()
            await bell.wait(at_least=min(LOOK_AGAIN_SECONDS, unasked), at_most=min(unasked, due))
        if time.monotonic() - spoke_at >= HEARTBEAT_SECONDS:
            yield ": still here\n\n"
            spoke_at = time.monotonic()


def look_up(sessions: SessionFactory, job_id: str, sequence: int) -> Look:
    """Read what came after an event, in a transaction of its own."""
    with sessions() as session:
        job = session.get_one(Job, job_id)
        # The job's count was read first, so whatever ended it is among its events.
        if job.event_count == sequence and not job.is_terminal:
            return Look("", sequence, is_over=False)
        events = session.scalars(
            select(JobEvent)
            .where(JobEvent.job_id == job_id, JobEvent.sequence > sequence)
            .order_by(JobEvent.sequence)
            .limit(MAX_EVENTS)
        ).all()
        last = events[-1].sequence if events else sequence
        text = "".join(frame(event.type, EventObject.of(event), id=event.id) for event in events)
        is_over = job.is_terminal and len(events) < MAX_EVENTS
        if is_over:
            text += frame("done", show_job(session, job))
        return Look(text, last, is_over)


def frame(event: str, data: Schema, *, id: str | None = None) -> str:
    """Write one server-sent event."""
    # In ASCII: readers differ in what else than a line feed ends a line.
    text = data.model_dump_json(ensure_ascii=True)
    return (f"id: {id}\n" if id else "") + f"event: {event}\ndata: {text}\n\n"
