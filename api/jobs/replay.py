"""Creation that happens once, however often a client that heard no answer asks again.

The stock client re-sends a timed-out request with `x-stainless-retry-count`, and never sends an
`Idempotency-Key` of its own accord; a caller may.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.locks import lock_name
from models.base import utc_now
from models.errors import Conflict, DomainError
from models.job import Job, JobKind

REPLAY_WINDOW = timedelta(minutes=15)
MAX_KEY = 255


class KeyReused(Conflict):
    """This Idempotency-Key was used for a different request."""

    code = "idempotency_key_reused"


class InvalidKey(DomainError):
    """An Idempotency-Key has 1 to 255 printable characters."""

    code = "invalid_idempotency_key"


@dataclass(frozen=True, slots=True)
class Replay:
    """What a request says about being a repetition."""

    key: str | None
    is_retry: bool


def get_replay(request: Request) -> Replay:
    """Read the headers that tell a repetition."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise InvalidKey
    count = request.headers.get("x-stainless-retry-count", "0")
    return Replay(key, is_retry=count.isdigit() and int(count[:9]) >= 1)


ReplayDep = Annotated[Replay, Depends(get_replay)]


def request_hash(kind: JobKind, body: BaseModel) -> str:
    """Hash what was asked for, whatever the order of its keys."""
    asked = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(f"{kind}\n{asked}".encode()).hexdigest()


def find_replayed(
    session: Session, project_id: str, replay: Replay, request_sha256: str
) -> Job | None:
    """Give the job that an earlier sending of this request made; the caller makes one if there is none.

    Both sendings wait for one lock, so the second sees what the first did even when they overlap.

    Raises:
        KeyReused: the key belongs to another request.
    """
    lock_name(session, "replay", project_id, replay.key or request_sha256)
    if replay.key is not None:
        job = session.scalar(
            select(Job).where(Job.project_id == project_id, Job.replay_key == replay.key)
        )
        if job is not None and job.request_sha256 != request_sha256:
            raise KeyReused
        return job
    if not replay.is_retry:
        return None
    return session.scalar(
        select(Job)
        .where(
            Job.project_id == project_id,
            Job.replay_key.is_(None),
            Job.request_sha256 == request_sha256,
            Job.created_at > utc_now() - REPLAY_WINDOW,
        )
        .order_by(Job.created_at.desc())
        .limit(1)
    )
