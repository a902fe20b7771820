"""Child processes that never outlive us.

Three nets, one below the other: an orderly stop; a signal from the kernel when this process dies without
one (Linux); and a record on disk, by which the next start on the same folder ends whatever is left. A
record names a process by its number and its start, so that a number used anew is never a victim.

This module knows nothing of PostgreSQL, Redis or the service's own parts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launch.py")
MAX_LOG_BYTES = 20_000_000
# How long a process may take to vanish after SIGKILL.
FORCE_SECONDS = 5.0


class EmbeddedError(RuntimeError):
    """A part of the embedded service cannot run. The message says what to do."""


class Confinement(StrEnum):
    """As whom a child runs when we are root."""

    #: As we are.
    NONE = "none"
    #: In a user namespace of its own, where it is not root.
    NAMESPACE = "namespace"
    #: As the account that owns nothing.
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and how it likes to be ended."""

    name: str
    arguments: tuple[str, ...]
    #: The whole environment of the child; none: ours.
    environment: Mapping[str, str] | None = field(default=None, repr=False)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    #: What the kernel sends when we die without a word. SIGKILL, unless the child ends well by itself.
    orphan_signal: signal.Signals = signal.SIGKILL
    confinement: Confinement = Confinement.NONE
    cwd: Path | None = None


def launcher_command(
    arguments: Sequence[str],
    *,
    confinement: Confinement,
    orphan_signal: signal.Signals = signal.SIGKILL,
) -> list[str]:
    """Wrap a command line so that it runs confined and dies with this process."""
    tie = (str(int(orphan_signal)), str(os.getpid()))
    return [sys.executable, "-I", "-S", str(LAUNCHER), confinement.value, *tie, *arguments]


class ChildProcess:
    """One child, its log (`logs/<name>.log`) and its record (`run/<name>.json`) in the state folder.

    On Linux a child dies with the *thread* that started it: start from one that lives as long.
    """

    def __init__(self, command: Command, state: Path) -> None:
        self.command = command
        self.log = state / "logs" / f"{command.name}.log"
        self._state = state
        self._record = state / "run" / f"{command.name}.json"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The command's name: of the log, of the record, in messages."""
        return self.command.name

    @property
    def pid(self) -> int | None:
        """The process number, or none before the first start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the child, after ending what a killed run left of it."""
        end_leftover(self._state, self.name)
        for folder in (self.log.parent, self._record.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _rotate(self.log)
        command = self.command
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                launcher_command(
                    command.arguments,
                    confinement=command.confinement,
                    orphan_signal=command.orphan_signal,
                ),
                env=None if command.environment is None else dict(command.environment),
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the terminal's whole group; the order of stopping is ours to choose.
                start_new_session=True,
            )
        _write_record(self._record, self._process.pid, command)

    def is_running(self) -> bool:
        """Whether the child was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def exit_code(self) -> int | None:
        """The exit status, negative for a signal, or none while it runs."""
        return self._process.poll() if self._process else None

    def stop(self) -> None:
        """End the child in its own way, or by force when that takes too long. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self.command.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.command.stop_seconds)
        # Its own children, if any are left, share the group that it leads.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._record.unlink(missing_ok=True)


def tail(log: Path, lines: int = 8) -> str:
    """The end of a log, indented, for an error message."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])


def end_leftovers(state: Path) -> list[str]:
    """End every child that a killed run left behind; give their names. Hold the folder's lock."""
    names = sorted(record.stem for record in (state / "run").glob("*.json"))
    return [name for name in names if end_leftover(state, name)]


def end_leftover(state: Path, name: str) -> bool:
    """End the child of that name, if an earlier run left it; say whether it did."""
    record = state / "run" / f"{name}.json"
    try:
        entry = json.loads(record.read_text())
        pid, started = int(entry["pid"]), str(entry["started"])
        stop_signal, stop_seconds = int(entry["stop_signal"]), float(entry["stop_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        record.unlink(missing_ok=True)
        return False
    was_running = False
    for number, patience in ((stop_signal, stop_seconds), (signal.SIGKILL, FORCE_SECONDS)):
        if started_at(pid) != started:
            break
        was_running = True
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            if number == signal.SIGKILL:
                os.killpg(pid, number)
        _wait_until_gone(pid, started, patience)
    if started_at(pid) == started:
        raise EmbeddedError(f"{name} of an earlier run (process {pid}) cannot be ended.")
    record.unlink(missing_ok=True)
    return was_running


def started_at(pid: int) -> str | None:
    """When a living process started, as text to compare; none when there is none."""
    if sys.platform != "linux":
        state, _, started = _ask_ps(pid, "stat=,lstart=").partition(" ")
        return started.strip() if state and not state.startswith("Z") else None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # Field 3 of proc(5) is the state, 20 the number of threads: a killed process whose first thread has
    # ended still holds its ports while another one ends. Field 22 is in ticks since boot, and unlike a
    # wall-clock time it does not move when the clock is set.
    has_ended = fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1)
    return None if has_ended else f"{boot}:{fields[19]}"


def program_of(pid: int) -> str | None:
    """The short name of the program that a process runs; none when there is no such process."""
    if sys.platform != "linux":
        return Path(_ask_ps(pid, "comm=")).name or None
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


def _ask_ps(pid: int, columns: str) -> str:
    command = ["ps", "-o", columns, "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _wait_until_gone(pid: int, started: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while started_at(pid) == started and time.monotonic() < deadline:
        time.sleep(0.02)


def _write_record(path: Path, pid: int, command: Command) -> None:
    entry = {
        "pid": pid,
        "started": started_at(pid),
        "stop_signal": int(command.stop_signal),
        "stop_seconds": command.stop_seconds,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(entry))
    partial.replace(path)


def _rotate(log: Path) -> None:
    with suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
