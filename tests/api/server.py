"""Runs an app on a real socket, for clients that must not be fooled by a test transport."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI


class QuickServer(uvicorn.Server):
    """Looks often whether it is to stop: tests start one for each of hundreds."""

    async def main_loop(self) -> None:
        while not self.should_exit:  # noqa: ASYNC110 - whoever stops it sets a flag
            await asyncio.sleep(0.005)


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serve on a free port of the loopback address; give the address, without a path."""
    server = QuickServer(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
