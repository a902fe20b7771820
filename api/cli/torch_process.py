"""Work that needs tensors runs in a process of its own, as a module of `worker`, and prints JSON lines.

The CLI itself loads no tensors: it would take seconds to say that a file is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any


class TorchProcessFailed(Exception):
    """The process ended badly; the message says why in a few words, and quotes nothing of its input."""


def read_json_lines(module: str, *arguments: str) -> Generator[dict[str, Any]]:
    """Start `python -m MODULE ARGUMENTS` and give the objects that it prints, one a line.

    Leaving the loop early ends the process.

    Raises:
        TorchProcessFailed: it ended with a status of its own, or cannot run here.
    """
    if find_spec("torch") is None:
        raise TorchProcessFailed("PyTorch is missing: pip install 'titer[worker]'")
    command = [sys.executable, "-m", module, *arguments]
    # A file, since a pipe that nobody reads while the process runs would stop it when full.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
            command, stdout=subprocess.PIPE, stderr=complaints, text=True, encoding="utf-8"
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                if line.startswith("{"):  # whatever else a library may have to say
                    yield json.loads(line)
            process.wait()
        finally:
            process.terminate()
        if process.returncode:
            complaints.seek(0)
            raise TorchProcessFailed(_kind(complaints.read().strip().splitlines()))


def _kind(complaints: list[str]) -> str:
    """Name the exception at the end of a traceback; what follows its name may quote a row."""
    last = complaints[-1] if complaints else ""
    name = last.partition(":")[0].strip()
    return name if name.replace(".", "").isidentifier() else "no reason given"
