"""The whole service on one machine: servers, migrations, first key, and Titer's four processes.

`titer up`, the demo and the end-to-end tests run this same class. `DATABASE_URL`, `REDIS_URL` and
`STORAGE_URL`, where set, replace the parts they name.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from api.embedded.database import first_key, upgrade
from api.embedded.postgres import EmbeddedPostgres
from api.embedded.process import ChildProcess, Command, EmbeddedError, end_leftovers
from api.embedded.redis import EmbeddedRedis
from api.embedded.state import (
    LOOPBACK,
    StateLock,
    is_free,
    kept_port,
    kept_secret,
    kept_signing_key,
    prepare,
    write_private,
)
from api.embedded.supervisor import Supervisor

DEFAULT_PORT = 8000
HEALTHY_SECONDS = 90.0
#: A host that means "every address" is no address to call.
CALLABLE = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}  # noqa: S104


class PortTaken(EmbeddedError):
    """Another program listens where the api should."""


class EmbeddedService:
    """A running Titer, as a context manager. Start it from a thread that lives as long as it.

    Args:
        state: the folder that holds everything; made when absent.
        host: where the api listens; other parts listen on the loopback address alone.
        port: the api's port; 0 takes a free one and keeps it for later starts on the same folder.
        environment: settings for every process, over those of our own environment.
        notify: told, in sentences, what happens.
    """

    def __init__(
        self,
        state: Path,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        environment: Mapping[str, str] | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state = state
        self.api_key = ""
        self._host = host
        self._port = port
        self._environment = {**os.environ, **(environment or {})}
        self._notify = notify
        self._supervisor = Supervisor(notify=notify)
        self._stack = ExitStack()
        self._serves = True

    def __enter__(self) -> Self:
        """Start everything; return when the api answers.

        Raises:
            EmbeddedError: a part cannot run; those that were started are stopped again.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything."""
        self.stop()

    @property
    def base_url(self) -> str:
        """Where the api is, without `/v1`."""
        host = CALLABLE.get(self._host, self._host)
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def database_url(self) -> str:
        """The database in use, with its password."""
        return self._environment["DATABASE_URL"]

    @property
    def redis_url(self) -> str:
        """The broker in use, with its password."""
        return self._environment["REDIS_URL"]

    @property
    def failed(self) -> threading.Event:
        """Set when a part keeps dying and the service should end; `failure` says which and why."""
        return self._supervisor.failed

    @property
    def failure(self) -> str | None:
        """Why the service cannot go on."""
        return self._supervisor.failure

    def stop(self) -> None:
        """Stop everything in order, leaving no process behind. May be called twice."""
        self._supervisor.stop()
        self._stack.close()

    def _start(self) -> None:
        self.state = state = prepare(self.state)
        self._stack.enter_context(StateLock(state))
        for name in end_leftovers(state):
            self._notify(f"{name} of an earlier run was still there; it has been ended.")
        self._choose_port()
        # Where the command line looks for the service.
        write_private(state / "url", self.base_url)
        self._start_servers()
        upgrade(self.database_url)
        self.api_key = first_key(self.database_url, state / "api_key")
        self._choose_serving_port()
        api, *others = self._children()
        # First and alone: the others load tensor libraries, which takes two cores for seconds.
        self._notify("starting the api")
        self._supervisor.start(api)
        self._wait_until_healthy()
        for child in others:
            self._supervisor.start(child)
        self._supervisor.tend()

    def _choose_port(self) -> None:
        if self._port == 0:
            self._port = kept_port(self.state / "api.port")
        elif not is_free(self._port, self._host):
            raise PortTaken(
                f"Port {self._port} on {self._host} is taken by another program, or not ours to use. "
                "Choose another with --port."
            )

    def _start_servers(self) -> None:
        state, environment = self.state, self._environment
        if not environment.get("DATABASE_URL"):
            self._notify("starting PostgreSQL")
            environment["DATABASE_URL"] = str(self._supervisor.start(EmbeddedPostgres(state)))
        if not environment.get("REDIS_URL"):
            self._notify("starting Redis")
            environment["REDIS_URL"] = str(self._supervisor.start(EmbeddedRedis(state)))
        if not environment.get("STORAGE_URL"):
            environment["STORAGE_URL"] = (state / "storage").as_uri()
        environment.setdefault("TITER_CACHE_DIR", str(state / "cache"))
        environment.setdefault("TITER_SERVING_TOKEN", kept_secret(state / "serving_token"))
        environment.setdefault("TITER_SESSION_SECRET", kept_secret(state / "session_secret"))
        environment.setdefault("TITER_SIGNING_KEY", kept_signing_key(state / "signing_key"))
        environment.setdefault("TITER_WEBHOOK_KEY", kept_secret(state / "webhook_key"))
        environment.setdefault("TITER_METRICS_TOKEN", kept_secret(state / "metrics_token"))
        if self._host == LOOPBACK:
            # Nobody else can reach this service, so its webhooks may lead to its own machine.
            environment.setdefault("TITER_WEBHOOK_ALLOW_PRIVATE", "true")
        environment["PYTHONUNBUFFERED"] = "1"

    def _choose_serving_port(self) -> None:
        """An inference server of the user's own, named by `TITER_SERVING_URL`, replaces ours."""
        self._serves = "TITER_SERVING_URL" not in self._environment
        if self._serves:
            port = kept_port(self.state / "serving.port")
            self._environment["TITER_SERVING_URL"] = f"http://{LOOPBACK}:{port}"

    def _children(self) -> list[ChildProcess]:
        api = [
            *("uvicorn", "--factory", "api.app:create_app"),
            *("--host", self._host, "--port", str(self._port)),
            # Open event streams would keep a stop waiting for ever.
            *("--timeout-graceful-shutdown", "2", "--no-server-header", "--no-access-log"),
        ]
        worker = [
            *("celery", "--app", "worker.tasks", "worker", "--pool", "prefork"),
            *("--concurrency", "1", "--prefetch-multiplier", "1", "--hostname", "titer@%h"),
            # There is one worker: nobody to gossip with, nobody to wait for.
            *("--without-gossip", "--without-mingle", "--loglevel", "INFO"),
        ]
        # A cold stop for the worker: the job goes on from its last checkpoint at the next start.
        children = [
            self._child("api", *api),
            self._child("sweeper", "api.sweeper"),
            self._child("worker", *worker, stop_signal=signal.SIGQUIT),
        ]
        if self._serves:
            children.append(self._child("serving", "worker.serving"))
        return children

    def _child(
        self, name: str, *module: str, stop_signal: signal.Signals = signal.SIGTERM
    ) -> ChildProcess:
        command = Command(
            name=name,
            # Safe path, and a folder without Python files: nothing of the user's shadows a package.
            arguments=(sys.executable, "-P", "-m", *module),
            environment=self._environment,
            stop_signal=stop_signal,
            cwd=self.state / "run",
        )
        return ChildProcess(command, self.state)

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY_SECONDS
        # A proxy of the user's environment has no business between us and ourselves.
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < deadline:
                self._supervisor.check()
                try:
                    if client.get(f"{self.base_url}/healthz").is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        raise EmbeddedError(
            f"The api does not answer at {self.base_url}/healthz after {HEALTHY_SECONDS:.0f} seconds. "
            f"Its log: {self.state / 'logs' / 'api.log'}"
        )
