"""Asks every part of the service whether it is well. Each has a moment to answer; none can keep the others waiting."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import cast

import httpx
import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from api.organization.use import SWEEPER_GONE_AFTER, last_count
from api.queue import Doorbell
from models.base import utc_now
from models.settings import Settings
from models.storage import Storage
from models.worker import Worker

log = structlog.get_logger(__name__)

#: For all parts together, for they are asked at once.
ANSWER_SECONDS = 2.5
MIN_FREE_PERCENT = 10.0
MAX_THREADS = 8


class PartState(StrEnum):
    """How a part is."""

    OK = "ok"
    #: It works, and somebody should look at it.
    WARN = "warn"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Part:
    """One part. `detail` is a sentence without addresses or secrets."""

    name: str
    state: PartState
    detail: str
    version: str | None = None
    milliseconds: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a part said of itself."""

    detail: str
    version: str | None = None
    state: PartState = PartState.OK


class _NoAnswer(Exception):
    """The part is not well; the message says how."""


def check_parts(
    session: Session, settings: Settings, storage: Storage, doorbell: Doorbell
) -> list[Part]:
    """Ask every part, those that are elsewhere at the same time."""
    asked: Mapping[str, Callable[[], Answer]] = {
        "redis": lambda: _ask_redis(settings.redis_url),
        "queue": lambda: _ask_queue(doorbell),
        "storage": lambda: _ask_storage(storage),
        "serving": lambda: _ask_serving(settings.serving_url),
    }
    # Not as a context manager: that would wait for whoever does not answer.
    threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="health")
    futures = {name: threads.submit(_timed, name, ask) for name, ask in asked.items()}
    # The session is this thread's alone.
    own = [
        _timed("database", lambda: _ask_database(session)),
        _timed("sweeper", lambda: _ask_sweeper(session)),
        _timed("workers", lambda: _ask_workers(session)),
    ]
    wait(futures.values(), timeout=ANSWER_SECONDS)
    threads.shutdown(wait=False, cancel_futures=True)
    elsewhere = [
        future.result()
        if future.done() and not future.cancelled()
        else Part(name, PartState.DOWN, f"No answer within {ANSWER_SECONDS:g} seconds.")
        for name, future in futures.items()
    ]
    return [own[0], *elsewhere, *own[1:]]


def _timed(name: str, ask: Callable[[], Answer]) -> Part:
    begun = time.monotonic()
    try:
        answer = ask()
    except _NoAnswer as error:
        return Part(name, PartState.DOWN, str(error))
    except Exception as error:
        # Whatever a library raises: a part that cannot be asked is down, and the page says so.
        log.warning("part_not_well", part=name, kind=type(error).__name__)
        return Part(name, PartState.DOWN, f"It does not answer ({type(error).__name__}).")
    took = round(1000 * (time.monotonic() - begun), 1)
    return Part(name, answer.state, answer.detail, answer.version, took)


def _ask_database(session: Session) -> Answer:
    version, size = session.execute(
        select(
            text("current_setting('server_version')"),
            func.pg_database_size(func.current_database()),
        )
    ).one()
    return Answer(f"It holds {_size(size)}.", version=str(version).split()[0])


def _ask_redis(url: str) -> Answer:
    with Redis.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    ) as client:
        try:
            facts = cast(dict[str, object], client.info())
        except RedisError as error:
            raise _NoAnswer(
                "It does not answer. Nothing is lost: the sweeper rings again when it is back."
            ) from error
    return Answer(
        f"It uses {_size(int(str(facts['used_memory'])))}.", version=str(facts["redis_version"])
    )


def _ask_queue(doorbell: Doorbell) -> Answer:
    waiting = doorbell.waiting()
    if waiting is None:
        raise _NoAnswer("The broker does not answer, so no worker hears of new jobs.")
    return Answer(
        f"{waiting:,} {'message' if waiting == 1 else 'messages'} no worker has taken yet."
    )


def _ask_storage(storage: Storage) -> Answer:
    if storage.root is None:
        # Whether there is such an object does not matter, only that the bucket says so.
        storage.exists("health")
        return Answer("The bucket answers.")
    if not os.access(storage.root, os.R_OK | os.W_OK | os.X_OK):
        raise _NoAnswer("The folder cannot be read and written.")
    usage = shutil.disk_usage(storage.root)
    is_nearly_full = usage.free < usage.total * MIN_FREE_PERCENT / 100
    return Answer(
        f"{_size(usage.free)} of {_size(usage.total)} are free.",
        state=PartState.WARN if is_nearly_full else PartState.OK,
    )


def _ask_serving(url: str) -> Answer:
    for path in ("/healthz", "/health"):  # The built-in server's, and vLLM's.
        try:
            # A proxy set for the outside world has no business between two parts of one service.
            with httpx.Client(timeout=ANSWER_SECONDS, trust_env=False) as client:
                response = client.get(url.rstrip("/") + path)
        except httpx.HTTPError as error:
            raise _NoAnswer("It does not answer, so no model can be asked.") from error
        if response.is_success:
            return Answer("It answers.")
    raise _NoAnswer(f"It answers with status {response.status_code}.")


def _ask_sweeper(session: Session) -> Answer:
    counted_at = last_count(session)
    if counted_at is None:
        return Answer("It has not counted yet; it does every minute.", state=PartState.WARN)
    if utc_now() - counted_at > SWEEPER_GONE_AFTER:
        raise _NoAnswer(
            f"It was last seen {_minutes(counted_at)} minutes ago: lost jobs stay lost, reviews do not end, "
            "webhooks are not sent."
        )
    return Answer("It looks after jobs, reviews, files and webhooks.")


def _ask_workers(session: Session) -> Answer:
    workers = session.scalars(select(Worker).where(Worker.stopped_at.is_(None))).all()
    alive = sum(worker.is_alive for worker in workers)
    silent = len(workers) - alive
    if not alive:
        raise _NoAnswer(f"None is alive{f', {silent} fell silent' if silent else ''}.")
    if silent:
        return Answer(f"{alive} alive, {silent} fell silent.", state=PartState.WARN)
    return Answer(f"{alive} alive.")


def _minutes(then: datetime) -> int:
    return max(1, round((utc_now() - then).total_seconds() / 60))


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
