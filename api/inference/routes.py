"""/v1/chat/completions: chat with a model that the gate released."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from api.deps import CallerDep, SessionDep
from api.inference import service
from api.inference.schemas import ChatRequest

router = APIRouter(prefix="/v1/chat", tags=["chat"])


def checked(body: ChatRequest, caller: CallerDep, session: SessionDep) -> ChatRequest:
    """Let only requests through whose model the caller may use."""
    service.check_access(session, body, project_id=caller.visible_project_id)
    return body


# The check runs in a thread and gives its connection back before the answer, which may take minutes.
CheckedDep = Annotated[ChatRequest, Depends(checked, scope="function")]


@router.post("/completions", response_class=JSONResponse)
async def complete(request: Request, asked: CheckedDep) -> Response:
    """Ask a released model. With `stream` the answer comes as server-sent events."""
    response = await service.ask(request.app.state.serving, asked)
    if asked.stream and response.status_code == 200:
        return StreamingResponse(service.stream(response), media_type="text/event-stream")
    status, answer = await service.whole(response)
    return JSONResponse(answer, status_code=status)
