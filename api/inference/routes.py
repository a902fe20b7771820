"""/v1/chat/completions: chat with a model that the gate released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from api.deps import CallerDep, app_transaction
from api.inference import service
from api.inference.metering import Reservation, metered, reserve, total
from api.inference.schemas import ChatRequest
from models.disconnect import unless_gone

router = APIRouter(prefix="/v1/chat", tags=["chat"])


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that may be served, and the tokens that were taken for it."""

    body: ChatRequest
    reservation: Reservation


def checked(request: Request, body: ChatRequest, caller: CallerDep) -> Checked:
    """Let only requests through whose model the caller may use, and for which there are tokens."""
    # In a transaction of its own: the request's would hold its connection until the answer is there, which
    # may take minutes.
    with app_transaction(request.app) as session:
        service.check_access(session, body, project_id=caller.visible_project_id)
    return Checked(body, reserve(request, caller, body.estimated_tokens()))


CheckedDep = Annotated[Checked, Depends(checked)]


@router.post("/completions", response_class=JSONResponse)
async def complete(request: Request, asked: CheckedDep) -> Response:
    """Ask a released model. With `stream` the answer comes as server-sent events."""
    async with asked.reservation:
        # A generation whose client has gone is given up: closing the connection tells the server behind.
        response = await unless_gone(
            request.receive, service.ask(request.app.state.serving, asked.body.to_serving())
        )
        if asked.body.stream and response.status_code == 200:
            content = metered(service.stream(response), asked.reservation)
            return StreamingResponse(content, media_type="text/event-stream")
        answer = await unless_gone(request.receive, service.whole(response))
    await asked.reservation.settle(total(answer.body) if answer.status == 200 else 0)
    return JSONResponse(answer.body, answer.status, answer.headers)
