"""Keeps parts running: a part that dies is started again, one that keeps dying ends the whole.

Knows nothing of what the parts are. Stopping goes in the reverse of the starting order, so that nothing
loses what it depends on while it still runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from api.embedded.process import EmbeddedError, tail

TEND_SECONDS = 0.25
QUICK_SECONDS = 10.0
MAX_QUICK_DEATHS = 5
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0


class Part(Protocol):
    """Something that runs until it is stopped, and can be started again."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def log(self) -> Path:
        """Where it writes why it died."""

    def start(self) -> object:
        """Start it, and return when it is started."""

    def is_running(self) -> bool:
        """Whether it is alive."""

    def stop(self) -> None:
        """End it; nothing happens when it has ended."""


@dataclass(slots=True)
class _Life:
    """What is remembered of a part's lives and deaths."""

    started: float
    quick_deaths: int = 0
    retry_at: float | None = None


class Supervisor:
    """Starts parts in order, tends them from a thread of its own, and stops them in reverse order."""

    def __init__(self, *, notify: Callable[[str], None] = lambda _: None) -> None:
        """Take who is told, in a sentence, when a part died and what is done about it."""
        self._notify = notify
        self._parts: list[Part] = []
        self._lives: dict[str, _Life] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        #: Set when the parts should run no longer because one of them cannot; see `failure`.
        self.failed = threading.Event()
        self.failure: str | None = None

    def start(self, part: Part) -> object:
        """Start a part and answer for it from now on; give what its own start gives."""
        # Listed before it is started, so that an interrupted start is stopped too.
        self._parts.append(part)
        result = part.start()
        self._lives[part.name] = _Life(time.monotonic())
        return result

    def tend(self) -> None:
        """Begin to restart parts that die."""
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `EmbeddedError` when a part is dead: for the time before `tend`."""
        for part in self._parts:
            if not part.is_running():
                raise EmbeddedError(_obituary(part))

    def stop(self) -> None:
        """Stop everything, the newest part first. May be called twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        while self._parts:
            self._parts.pop().stop()

    def _run(self) -> None:
        while not self._stopping.wait(TEND_SECONDS):
            for part in tuple(self._parts):
                if not self._keep_alive(part, time.monotonic()):
                    self.failure = (
                        f"{_obituary(part)}\nIt died {MAX_QUICK_DEATHS} times within "
                        f"{QUICK_SECONDS:.0f} seconds of its start."
                    )
                    self.failed.set()
                    return

    def _keep_alive(self, part: Part, now: float) -> bool:
        """Look after one part; False when it is beyond help."""
        life = self._lives[part.name]
        if part.is_running():
            return True
        if life.retry_at is None:
            is_quick = now - life.started < QUICK_SECONDS
            life.quick_deaths = life.quick_deaths + 1 if is_quick else 1
            if life.quick_deaths >= MAX_QUICK_DEATHS:
                return False
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (life.quick_deaths - 1), LONGEST_PAUSE_SECONDS)
            life.retry_at = now + pause
            self._notify(f"{part.name} ended by itself; it is started again. Its log: {part.log}")
        elif now >= life.retry_at:
            life.started, life.retry_at = now, None
            try:
                part.start()
            except EmbeddedError as error:
                self._notify(str(error))
        return True


def _obituary(part: Part) -> str:
    return f"{part.name} ended by itself. The end of {part.log}:\n{tail(part.log)}"
