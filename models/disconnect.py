"""Stops working for a client that has gone. Knows ASGI's messages and no framework."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from models.errors import DomainError

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(DomainError):
    """Nobody waits for the answer any more."""

    # Never read by anybody but the log: the status that proxies have for it.
    status_code = 499
    code = "client_gone"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Give what `work` gives; cancel it when the client disconnects.

    Args:
        receive: the request's ASGI channel, from which the body has been read.
        work: what the client waits for.

    Raises:
        ClientGone: it disconnected first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        # Until both have let go of what they hold.
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
