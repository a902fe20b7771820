"""What `titer up` does: run the whole service in the foreground until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from api.embedded.process import EmbeddedError
from api.embedded.service import DEFAULT_PORT, EmbeddedService
from api.embedded.state import LOOPBACK

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stop(BaseException):
    """Asked to stop. Not an `Exception`, so that nothing on the way takes it for a fault."""


def run_up(
    state: Path,
    *,
    host: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    console: Console | None = None,
    make_service: type[EmbeddedService] = EmbeddedService,
) -> int:
    """Run the service until Ctrl-C, SIGTERM or the terminal's end; give the exit status.

    Args:
        state: the folder that holds everything.
        host: where the api listens.
        port: the api's port; 0 takes a free one.
        console: where to speak.
        make_service: what to run; tests put in one with fewer processes.
    """
    console = console or Console(stderr=True)

    def say(line: str, style: str | None = None) -> None:
        # Unwrapped and as it is: people copy keys and paths from here.
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    service = make_service(state, host=host, port=port, notify=lambda line: say(line, "dim"))
    try:
        with _stop_signals(), service:
            say(_welcome(service))
            # Waiting in slices: an untimed wait would not let signals through on every system.
            while not service.failed.wait(1.0):
                pass
    except _Stop:
        say("stopped", "dim")
        return 0
    except EmbeddedError as error:
        say(str(error), "red")
        return 1
    say(service.failure or "", "red")
    return 1


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Turn the first signal into `_Stop`; further ones do not disturb the stopping."""
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if not asked.is_set():
            asked.set()
            raise _Stop

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _welcome(service: EmbeddedService) -> str:
    lines = {
        "API": f"{service.base_url}/v1",
        "Dashboard": f"{service.base_url}/dashboard",
        "API key": service.api_key,
        "State": str(service.state),
        "Logs": str(service.state / "logs"),
    }
    rows = "\n".join(f"  {name:<10} {value}" for name, value in lines.items())
    return f"Titer is up. Ctrl-C stops it.\n{rows}"
