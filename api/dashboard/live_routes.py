"""Tells an open page that something on it has changed, as server-sent events; the page then asks for it again.

What is sent says nothing but that, and only of jobs that the viewer may see. A page that is told nothing asks
seldom: what is no job's (a worker's heartbeat, a clock) moves as well.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from api.dashboard.jobs.job_page import find_job
from api.dashboard.viewer import ViewerDep, is_signed_in
from api.deps import SessionDep
from api.event_stream.changes import EVERY_JOB, Bell, Changes
from api.event_stream.service import LONGEST_SECONDS, EventStream
from models.session import SessionFactory

router = APIRouter()
log = structlog.get_logger(__name__)

#: A page asks this often unasked: while changes are heard of, and while not.
ASK_ANYWAY_SECONDS = 15.0
POLL_SECONDS = 3.0
#: However much happens, a page is told this often.
TELL_AGAIN_SECONDS = 1.0
# Data without which browsers drop the event, and how soon they come back after the stream's end.
CHANGED = "event: changed\ndata: -\n\n"
GREETING = "retry: 1000\n\n"


@dataclass(frozen=True, slots=True)
class Watch:
    """Who watches, and what for."""

    key_id: str
    project_id: str
    topic: str


def begin_watch(session: SessionDep, viewer: ViewerDep, job: str = "") -> Watch:
    """Find what a page may be told of, with a connection that is given back before the stream begins."""
    visible = viewer.visible_project_id
    topic = find_job(session, visible, job).id if job else (visible or EVERY_JOB)
    return Watch(viewer.key.id, viewer.project.id, topic)


@router.get("/live")
async def tell_changes(
    request: Request, watch: Annotated[Watch, Depends(begin_watch, scope="function")]
) -> Response:
    """Tell a page when its job, or any job that its viewer may see, has changed."""
    state = request.app.state
    return EventStream(
        state.event_slots,
        state.changes,
        project_id=watch.project_id,
        topic=watch.topic,
        content=partial(tell, state.sessions, state.changes, watch),
    )


async def tell(
    sessions: SessionFactory, changes: Changes, watch: Watch, bell: Bell
) -> AsyncIterator[str]:
    """Say `changed` at once, for the page was drawn before, and whenever the bell rings, while the key lives."""
    ends_at = time.monotonic() + LONGEST_SECONDS
    yield GREETING
    while time.monotonic() < ends_at:
        yield CHANGED
        unasked = ASK_ANYWAY_SECONDS if changes.is_hearing else POLL_SECONDS
        at_most = min(unasked, ends_at - time.monotonic())
        await bell.wait(at_least=min(TELL_AGAIN_SECONDS, unasked), at_most=at_most)
        try:
            if not await run_sync(is_signed_in, sessions, watch.key_id):
                return
        except SQLAlchemyError as error:
            log.warning("live_page_broken", kind=type(error).__name__)
            return
