"""/v1/chat/completions: chat with a model that the gate released."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from api.deps import CallerDep, app_transaction
from api.inference import service
from api.inference.schemas import ChatRequest
from models.disconnect import unless_gone

router = APIRouter(prefix="/v1/chat", tags=["chat"])


def checked(request: Request, body: ChatRequest, caller: CallerDep) -> ChatRequest:
    """Let only requests through whose model the caller may use."""
    # In a transaction of its own: the request's would hold its connection until the answer is there, which
    # may take minutes.
    with app_transaction(request.app) as session:
        service.check_access(session, body, project_id=caller.visible_project_id)
    return body


CheckedDep = Annotated[ChatRequest, Depends(checked)]


@router.post("/completions", response_class=JSONResponse)
async def complete(request: Request, asked: CheckedDep) -> Response:
    """Ask a released model. With `stream` the answer comes as server-sent events."""
    # A generation whose client has gone is given up: closing the connection tells the server behind.
    response = await unless_gone(
        request.receive, service.ask(request.app.state.serving, asked.to_serving())
    )
    if asked.stream and response.status_code == 200:
        return StreamingResponse(service.stream(response), media_type="text/event-stream")
    answer = await unless_gone(request.receive, service.whole(response))
    return JSONResponse(answer.body, answer.status, answer.headers)
