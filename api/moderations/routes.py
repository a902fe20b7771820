"""/v1/moderations: what a judge says of texts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from api.deps import CallerDep, SettingsDep, app_transaction
from api.moderations import service
from api.moderations.schemas import ModerationObject, ModerationRequest
from models.disconnect import unless_gone

router = APIRouter(prefix="/v1", tags=["moderations"])


def chosen(
    request: Request, body: ModerationRequest, caller: CallerDep, settings: SettingsDep
) -> tuple[ModerationRequest, str]:
    """Find the model whose safety set names the judge."""
    with app_transaction(request.app) as session:
        model = service.choose_model(
            session,
            body.model,
            default=settings.moderation_model,
            project_id=caller.visible_project_id,
        )
    return body, model


ChosenDep = Annotated[tuple[ModerationRequest, str], Depends(chosen)]


@router.post("/moderations", response_model=ModerationObject)
async def moderate(request: Request, asked: ChosenDep, settings: SettingsDep) -> JSONResponse:
    """Judge texts, each as if a model had said it."""
    body, model = asked
    work = service.moderate(
        request.app.state.serving, body, model=model, url=settings.moderation_url
    )
    answer = await unless_gone(request.receive, work)
    return JSONResponse(answer.body, answer.status, answer.headers)
