""".../jobs/{id}/events/stream, for jobs of every kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from api.deps import CallerDep, ProviderDep, SessionDep
from api.event_stream import service
from api.event_stream.service import Beginning, EventStream
from api.jobs.service import get_job
from models.job import JobKind

router = APIRouter(prefix="/v1")
LastEventId = Annotated[
    str | None,
    Header(description="The last event that was seen; the stream goes on after it."),
]
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {}},
        "description": "Events as they happen; `done` with the job when it has ended.",
    }
}


def of_finetuning(
    job_id: str, caller: CallerDep, session: SessionDep, last_event_id: LastEventId = None
) -> Beginning:
    """Find a fine-tuning job, with a connection that is given back before the stream begins."""
    job = get_job(session, JobKind.FINETUNE, job_id, project_id=caller.visible_project_id)
    return service.begin(session, job, project_id=caller.project.id, last_event_id=last_event_id)


def of_provider(kind: JobKind) -> Callable[..., Beginning]:
    """Make the same for the provider's jobs of a kind, which belong to no tenant."""

    def find(
        job_id: str, caller: ProviderDep, session: SessionDep, last_event_id: LastEventId = None
    ) -> Beginning:
        job = get_job(session, kind, job_id, project_id=None)
        return service.begin(
            session, job, project_id=caller.project.id, last_event_id=last_event_id
        )

    return find


@router.get(
    "/fine_tuning/jobs/{job_id}/events/stream",
    tags=["fine-tuning"],
    response_class=Response,
    responses=STREAM,
)
async def finetuning(
    request: Request,
    beginning: Annotated[Beginning, Depends(of_finetuning, scope="function")],
) -> EventStream:
    """Follow a fine-tuning job's log as server-sent events."""
    return _stream(request, beginning)


@router.get(
    "/alignment/jobs/{job_id}/events/stream",
    tags=["alignment"],
    response_class=Response,
    responses=STREAM,
)
async def alignment(
    request: Request,
    beginning: Annotated[Beginning, Depends(of_provider(JobKind.ALIGN), scope="function")],
) -> EventStream:
    """Follow an alignment job's log as server-sent events."""
    return _stream(request, beginning)


@router.get(
    "/certification/jobs/{job_id}/events/stream",
    tags=["certification"],
    response_class=Response,
    responses=STREAM,
)
async def certification(
    request: Request,
    beginning: Annotated[Beginning, Depends(of_provider(JobKind.CERTIFY), scope="function")],
) -> EventStream:
    """Follow a certification job's log as server-sent events."""
    return _stream(request, beginning)


@router.get(
    "/evaluation/jobs/{job_id}/events/stream",
    tags=["evaluation"],
    response_class=Response,
    responses=STREAM,
)
async def evaluation(
    request: Request,
    beginning: Annotated[Beginning, Depends(of_provider(JobKind.EVALUATE), scope="function")],
) -> EventStream:
    """Follow an evaluation job's log as server-sent events."""
    return _stream(request, beginning)


def _stream(request: Request, beginning: Beginning) -> EventStream:
    state = request.app.state
    return EventStream(
        state.event_slots,
        state.changes,
        project_id=beginning.project_id,
        topic=beginning.job_id,
        content=partial(service.follow, state.sessions, state.changes, beginning),
    )
