"""The state folder: one lock, private small files, and ports that stay the same over restarts.

It knows nothing of the parts that live in the folder.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from api.embedded.process import EmbeddedError

LOOPBACK = "127.0.0.1"


class AlreadyRunning(EmbeddedError):
    """Another service runs on this state folder."""


class StateLock:
    """Held while a service runs on a folder. The kernel gives it back however the process ends."""

    def __init__(self, state: Path) -> None:
        self._path = state / "lock"
        self._state = state
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            AlreadyRunning: another process has it; the message names the folder and the process.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            by = f" (process {holder})" if holder else ""
            raise AlreadyRunning(
                f"Titer is already running on {self._state}{by}. "
                "Stop it first, or choose another state folder."
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lock back. The file stays: removing it would let two starts lock two files."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def prepare(state: Path) -> Path:
    """Make the folder, closed to other users; give its absolute path."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        resolved = state.resolve(strict=True)
        if not os.access(resolved, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise EmbeddedError(
            f"The state folder {state} cannot be used: {error.strerror}."
        ) from error
    return resolved


def write_private(path: Path, text: str) -> None:
    """Write a small file that only we may read, never half and never readable for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def kept_secret(path: Path) -> str:
    """The secret kept in a file, made at the first call. It needs no quoting in a URL."""
    return _kept(path, lambda: secrets.token_urlsafe(32))


def kept_signing_key(path: Path) -> str:
    """The signing key kept in a file, made at the first call: 64 hex digits."""
    return _kept(path, lambda: secrets.token_hex(32))


def _kept(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        write_private(path, make())
    return path.read_text().strip()


def kept_port(path: Path) -> int:
    """The port kept in a file if it is still free, else another one, kept from now on."""
    port = 0
    if path.exists():
        text = path.read_text().strip()
        port = int(text) if text.isdecimal() and 0 < int(text) < 65536 else 0
    if port == 0 or not is_free(port):
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        write_private(path, str(port))
    return port


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: connections that linger after a restart are not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
