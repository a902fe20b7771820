"""Says that this worker is here: its device, its memory, the base it holds and the job it is at.

A thread of the process that runs jobs, so that a worker that hangs in a step still speaks and one that was
killed does not. What it says is for people (`models.worker`); nothing is decided by it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import torch
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from models.base import utc_now
from models.job import Job, JobStatus
from models.session import SessionFactory
from models.worker import SPEAKS_EVERY, speak
from worker.base_models import ResidentBase

log = structlog.get_logger(__name__)


class Presence:
    """Speaks every few seconds from `start` to `stop`."""

    def __init__(self, sessions: SessionFactory, bases: ResidentBase, *, owner: str) -> None:
        """Speak for the worker that leases jobs as `owner` and keeps its base in `bases`."""
        self._sessions = sessions
        self._bases = bases
        self._owner = owner
        self._started_at = utc_now()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Begin to speak."""
        self._thread.start()

    def stop(self) -> None:
        """Say good-bye."""
        self._stopped.set()
        self._thread.join(timeout=SPEAKS_EVERY.total_seconds())
        self._say(stopped_at=utc_now())

    def _run(self) -> None:
        self._say()
        while not self._stopped.wait(SPEAKS_EVERY.total_seconds()):
            self._say()

    def _say(self, **more: object) -> None:
        try:
            with self._sessions.begin() as session:
                job_id = session.scalar(
                    select(Job.id).where(
                        Job.lease_owner == self._owner, Job.status == JobStatus.RUNNING
                    )
                )
                speak(
                    session,
                    self._owner,
                    {
                        "host": self._owner.rpartition(":")[0],
                        "started_at": self._started_at,
                        "base_id": self._bases.resident_id,
                        "job_id": job_id,
                        "version": version("titer"),
                        **_device_facts(),
                        **more,
                    },
                )
        except SQLAlchemyError as error:
            log.warning("presence_not_written", kind=type(error).__name__)


def _device_facts() -> Mapping[str, Any]:
    """Give the device's name, its memory, and how much of that is this process's (bytes)."""
    if not torch.cuda.is_available():
        return {
            "device": "cpu",
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "memory_used_bytes": _resident_bytes(),
            "utilisation_percent": None,
        }
    free, total = torch.cuda.mem_get_info()
    return {
        "device": f"cuda: {torch.cuda.get_device_name()}",
        "memory_bytes": total,
        "memory_used_bytes": total - free,
        "utilisation_percent": _utilisation(),
    }


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _utilisation() -> float | None:
    try:
        return float(torch.cuda.utilization())
    except (ModuleNotFoundError, RuntimeError):
        # It asks the driver's management library, which not every image carries.
        return None
