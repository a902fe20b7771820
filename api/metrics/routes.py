"""/metrics, for Prometheus. No part of the public API, so it is not in its document.

Readable without a database: that the database is away is one of the things to be read.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.deps import SettingsDep
from api.metrics.service import check_reader, write_metrics

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def metrics(
    request: Request,
    settings: SettingsDep,
    authorization: Annotated[str, Header()] = "",
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Give the metrics to whoever has the token; without a token there is nothing at this address."""
    if not settings.metrics_token:
        raise HTTPException(404)
    check_reader(settings, authorization)
    content, media_type = write_metrics(request.app.state.metrics, accept)
    return Response(content, media_type=media_type, headers={"cache-control": "no-store"})
