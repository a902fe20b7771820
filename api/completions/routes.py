"""/v1/completions: the legacy form of a question to a model that the gate released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from api.completions import service
from api.completions.schemas import CompletionRequest
from api.deps import CallerDep, app_transaction
from api.inference.metering import Reservation, reserve, total
from api.inference.service import ask, check_access, whole
from models.disconnect import unless_gone

router = APIRouter(prefix="/v1", tags=["completions"])


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that may be served, and the tokens that were taken for it."""

    body: CompletionRequest
    reservation: Reservation


def checked(request: Request, body: CompletionRequest, caller: CallerDep) -> Checked:
    """Let only requests through whose model the caller may use, and for which there are tokens."""
    with app_transaction(request.app) as session:
        check_access(session, body, project_id=caller.visible_project_id)
    return Checked(body, reserve(request, caller, body.estimated_tokens()))


CheckedDep = Annotated[Checked, Depends(checked)]


@router.post("/completions", response_class=JSONResponse)
async def complete(request: Request, asked: CheckedDep) -> Response:
    """Complete prompts, each as the first turn of a chat. With `stream`, as server-sent events."""
    client = request.app.state.serving
    completion = service.Completion(asked.body)
    async with asked.reservation:
        if asked.body.stream:
            first = await unless_gone(request.receive, ask(client, completion.body(0)))
            if first.status_code == 200:
                content = service.stream(client, completion, first, asked.reservation)
                return StreamingResponse(content, media_type="text/event-stream")
            answer = await unless_gone(request.receive, whole(first))
        else:
            answer = await unless_gone(request.receive, service.whole(client, completion))
    await asked.reservation.settle(total(answer.body) if answer.status == 200 else 0)
    return JSONResponse(answer.body, answer.status, answer.headers)
