"""One thread that does one thing after another, in the order in which they came.

A model in memory is used by one request at a time. Those that wait are counted: one too many is told so at
once, instead of waiting for minutes behind the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from models.errors import Unavailable

T = TypeVar("T")


class TooManyWaiting(Unavailable):
    """Too many requests wait for this model already. Try again in a moment."""

    code = "serving_busy"


class Turns:
    """A thread with a bounded queue before it."""

    def __init__(self, name: str, places: int) -> None:
        """Start no thread before the first turn.

        Args:
            name: what the thread is called.
            places: how many may be in the queue or at their turn at once.
        """
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._places = threading.BoundedSemaphore(places)

    def take(self, work: Callable[[], T]) -> Future[T]:
        """Queue up. A cancelled future's work is never begun.

        Raises:
            TooManyWaiting: every place is taken.
        """
        if not self._places.acquire(blocking=False):
            raise TooManyWaiting
        future = self._executor.submit(work)
        future.add_done_callback(lambda _: self._places.release())
        return future

    def close(self) -> None:
        """Let the running turn end and drop the others."""
        self._executor.shutdown(wait=False, cancel_futures=True)
