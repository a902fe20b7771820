"""/healthz: whether this process can do its work."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from sqlalchemy import text

from api.deps import SessionDep
from api.schemas import Schema

router = APIRouter(tags=["health"])


class Health(Schema):
    """The process is up and reaches its database."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
def healthz(session: SessionDep) -> Health:
    """Answer 200 when the database answers, 503 when it does not."""
    session.execute(text("SELECT 1"))
    return Health()
