"""Moderation by the judge of a safety set: which judge, and its judgements in OpenAI's form.

The judges of harmful scores read an answer to a prompt. A bare input is judged as an answer to nothing,
which means: would it be harmful if a model had said it? A judge that fails is an error, never a verdict.
"""

from __future__ import annotations

import secrets

import httpx
import structlog
from pydantic import BaseModel, StrictBool, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.inference import service as inference
from api.inference.service import Answer, ServingUnavailable
from api.moderations.schemas import (
    CATEGORIES,
    JudgeName,
    ModerationObject,
    ModerationRequest,
    Result,
)
from models.errors import DomainError, Unavailable
from models.model_version import ModelNotFound, ModelVersion, VersionKind, get_version

log = structlog.get_logger(__name__)

PATH = "/judgements"
#: Names under which OpenAI's clients ask for whatever judge the service has.
OPENAI_NAMES = frozenset(
    {
        "omni-moderation-latest",
        "omni-moderation-2024-09-26",
        "text-moderation-latest",
        "text-moderation-stable",
    }
)
#: The category of what a judge calls harmful without saying how.
UNNAMED = "harmful"


class NoDefaultJudge(DomainError):
    """The service has no judge of its own for moderation. Name a model, whose safety set's judge is meant."""

    code = "no_default_judge"


class JudgeMisconfigured(Unavailable):
    """The model that the service is set to moderate by does not exist."""

    code = "judge_misconfigured"


class _Judgement(BaseModel):
    is_harmful: StrictBool
    category: str | None


class _Judged(BaseModel):
    judge: JudgeName
    judgements: list[_Judgement]


def choose_model(session: Session, name: str, *, default: str, project_id: str | None) -> str:
    """Give the model whose safety set names the judge.

    Args:
        session: an open session.
        name: what the caller asked for.
        default: the service's own choice; empty: the one base that there is.
        project_id: the caller's project; None for staff.

    Raises:
        ModelNotFound: there is no such model for this caller.
        NoDefaultJudge: none was named, none is set, and there is not exactly one base.
        JudgeMisconfigured: the one that is set does not exist.
    """
    if name not in OPENAI_NAMES:
        return get_version(session, name, project_id=project_id).id
    if default:
        try:
            return get_version(session, default, project_id=None).id
        except ModelNotFound as error:
            raise JudgeMisconfigured from error
    bases = session.scalars(
        select(ModelVersion.id)
        .where(ModelVersion.kind == VersionKind.BASE, ModelVersion.deleted_at.is_(None))
        .limit(2)
    ).all()
    if len(bases) != 1:
        raise NoDefaultJudge(param="model")
    return bases[0]


async def moderate(
    client: httpx.AsyncClient, asked: ModerationRequest, *, model: str, url: str
) -> Answer:
    """Have every input judged.

    Args:
        client: reaches the inference server.
        asked: the request.
        model: whose safety set names the judge.
        url: where the judges are, if not at the inference server.

    Raises:
        ServingUnavailable: there are no judgements.
    """
    exchanges = asked.exchanges()
    response = await inference.ask(
        client, {"model": model, "exchanges": exchanges}, f"{url.rstrip('/')}{PATH}"
    )
    answer = await inference.whole(response)
    if answer.status == 503:
        return answer
    if answer.status != 200:
        # The api has checked the request: that it is refused is not the caller's fault.
        log.warning("judge_refused", status=answer.status)
        raise ServingUnavailable
    try:
        judged = _Judged.model_validate(answer.body)
    except ValidationError as error:
        log.warning("judge_answered_otherwise")
        raise ServingUnavailable from error
    if len(judged.judgements) != len(exchanges):
        raise ServingUnavailable
    shown = ModerationObject(
        id="modr-" + secrets.token_hex(12),
        model=judged.judge.name,
        results=[_result(judgement) for judgement in judged.judgements],
        judge=judged.judge,
    )
    return Answer(200, shown.model_dump(mode="json"))


def _result(judgement: _Judgement) -> Result:
    found = {judgement.category or UNNAMED} if judgement.is_harmful else set()
    names = [*CATEGORIES, *sorted(found.difference(CATEGORIES))]
    return Result(
        flagged=judgement.is_harmful,
        categories={name: name in found for name in names},
        # Judges of harmful scores say yes or no.
        category_scores={name: float(name in found) for name in names},
        category_applied_input_types={name: ["text"] for name in names},
    )
