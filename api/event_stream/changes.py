"""Which jobs have changed, as PostgreSQL tells it: one connection of the process listens, and wakes whoever waits.

A trigger on the jobs' events notifies when their transaction commits, so writers do nothing for it. What is
heard says only that there is something to look at; the tables are the truth.

That notices come is not taken on trust. A connection may die without a word, and a pooler in transaction mode
takes a LISTEN and passes nothing on. So the listener has a notice sent to itself time and again, by the way
that writers' come, and counts as hearing only while these arrive.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import structlog
from psycopg import AsyncConnection

from models.session import psycopg_arguments

log = structlog.get_logger(__name__)

#: The topic on which every job's changes are told; a job's and a project's own are their ids.
EVERY_JOB = ""
#: How often the listener makes sure that it hears.
CHECK_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
LISTENER_NAME = "titer-listener"


class Deaf(Exception):
    """A notice to ourselves did not arrive."""


class Bell:
    """Wakes one waiter. Belongs to one event loop, as everything here does."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the waiter, now or when it next waits."""
        self._rung.set()

    async def wait(self, *, at_least: float, at_most: float) -> None:
        """Wait for the bell; both bounds are in seconds. However often it rang meanwhile, that was once."""
        await anyio.sleep(at_least)
        with anyio.move_on_after(at_most - at_least):
            await self._rung.wait()
        # Before the waiter looks: what comes while it looks rings anew.
        self._rung.clear()


class Changes:
    """Listens in the background and rings the bells of those who wait for a topic.

    Args:
        database_url: where writers are.
        listen_url: another way to the same database, for listening; empty: the same.
    """

    def __init__(self, database_url: str, listen_url: str = "") -> None:
        self._knock_at = {"connect_timeout": 10, **psycopg_arguments(database_url)}
        self._listen_at = {
            "connect_timeout": 10,
            "application_name": LISTENER_NAME,
            **psycopg_arguments(listen_url or database_url),
        }
        self._bells: dict[str, set[Bell]] = {}
        self._is_hearing = False

    @property
    def is_hearing(self) -> bool:
        """Whether a change would be told. While not, whoever waits has to look by itself, often."""
        return self._is_hearing

    @contextmanager
    def bell(self, topic: str) -> Iterator[Bell]:
        """Give a bell that rings for a job's id, for a project's, or for `EVERY_JOB`."""
        bell = Bell()
        self._bells.setdefault(topic, set()).add(bell)
        try:
            yield bell
        finally:
            self._bells[topic].discard(bell)
            if not self._bells[topic]:
                del self._bells[topic]

    async def listen(self) -> None:
        """Listen until cancelled, coming back from whatever breaks it."""
        pause = FIRST_PAUSE_SECONDS
        was_told = False
        try:
            while True:
                try:
                    await self._hear()
                except Exception as error:
                    if self._is_hearing:
                        pause, was_told = FIRST_PAUSE_SECONDS, False
                    self._set_hearing(False)
                    if not was_told:
                        # Told once for each outage. What the driver says may hold an address: its kind suffices.
                        log.warning("job_changes_unheard", kind=type(error).__name__)
                        was_told = True
                await anyio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        finally:
            self._set_hearing(False)

    async def _hear(self) -> None:
        async with await AsyncConnection.connect(**self._listen_at, autocommit=True) as connection:
            await connection.execute("LISTEN titer_job")
            while True:
                knock = secrets.token_hex(8)
                await self._knock(knock)
                was_heard = False
                async for notice in connection.notifies(timeout=CHECK_SECONDS):
                    if notice.payload == knock:
                        was_heard = True
                        self._set_hearing(True)
                    else:
                        self._tell(notice.payload)
                if not was_heard:
                    raise Deaf

    async def _knock(self, word: str) -> None:
        async with await AsyncConnection.connect(**self._knock_at, autocommit=True) as connection:
            await connection.execute("select pg_notify('titer_job', %s)", (word,))

    def _tell(self, payload: str) -> None:
        project_id, _, job_id = payload.partition(" ")
        # Other processes' knocks come along as well.
        if job_id:
            self._ring(EVERY_JOB, project_id, job_id)

    def _set_hearing(self, is_hearing: bool) -> None:
        if is_hearing == self._is_hearing:
            return
        self._is_hearing = is_hearing
        if is_hearing:
            log.info("job_changes_heard")
        # What changed before is not told again, and how often to look by oneself is another now.
        self._ring(*self._bells)

    def _ring(self, *topics: str) -> None:
        for topic in topics:
            for bell in self._bells.get(topic, ()):
                bell.ring()
