"""The overview: everything gathered for the template."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.dashboard.overview.attention import (
    EndedByCanary,
    Faults,
    Held,
    read_alarms,
    read_faults,
    read_held,
)
from api.dashboard.overview.first_steps import FirstStep, first_steps
from api.dashboard.overview.fleet import Fleet, read_fleet
from api.dashboard.overview.queue import Ended, Queue, count_unfinished, read_ended, read_queue
from api.dashboard.overview.scores import Distribution, read_distribution
from api.organization.use import SWEEPER_GONE_AFTER, Use, most_stored, nearest_limits
from models.base import utc_now
from models.project import Quotas
from models.project_use import ProjectUse
from models.storage import Storage

MAX_PROJECTS_SHOWN = 6
NEAR_PERCENT = 80.0
#: Of a local storage folder's disk: less free space than this needs a person.
MIN_FREE_PERCENT = 10.0


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk that a local storage folder lies on."""

    free: int
    whole: int

    @property
    def used_percent(self) -> float:
        """The share in use."""
        return 100.0 - self.free_percent

    @property
    def free_percent(self) -> float:
        """The share that is left."""
        return 100.0 * self.free / self.whole if self.whole else 0.0

    @property
    def is_nearly_full(self) -> bool:
        """Whether somebody should make room."""
        return self.free_percent < MIN_FREE_PERCENT


@dataclass(frozen=True, slots=True)
class Overview:
    """What the template shows."""

    held: Held
    alarms: tuple[EndedByCanary, ...]
    faults: Faults
    fleet: Fleet
    queue: Queue
    running: int
    paused: int
    ended: Ended
    distribution: Distribution
    stored: tuple[Use, ...]
    stored_total: int
    #: When the sweeper counted what is stored and used; never, if it has not run yet.
    counted_at: datetime | None
    near_limits: tuple[Use, ...]
    disk: Disk | None
    first_steps: tuple[FirstStep, ...]

    @property
    def is_sweeper_gone(self) -> bool:
        """Whether nobody looks after lost jobs, reviews and files."""
        return self.counted_at is not None and utc_now() - self.counted_at > SWEEPER_GONE_AFTER

    @property
    def nobody_works(self) -> bool:
        """Whether jobs wait and no worker is there to take them."""
        return self.queue.jobs > 0 and self.fleet.alive == 0

    @property
    def alerts(self) -> int:
        """How many things besides what is held need a person."""
        return sum(
            (
                self.nobody_works,
                self.is_sweeper_gone,
                bool(self.disk and self.disk.is_nearly_full),
                len(self.fleet.silent),
                len(self.fleet.falling),
                len(self.alarms),
                self.faults.total,
            )
        )


def read_overview(session: Session, storage: Storage, defaults: Quotas) -> Overview:
    """Gather the overview.

    Args:
        session: an open session.
        storage: where files and models are.
        defaults: the limits of projects that have none of their own.
    """
    fleet = read_fleet(session)
    held = read_held(session)
    running, paused = count_unfinished(session)
    stored_total, counted_at = session.execute(
        select(func.coalesce(func.sum(ProjectUse.bytes_stored), 0), func.max(ProjectUse.counted_at))
    ).one()
    return Overview(
        held=held,
        alarms=read_alarms(session),
        faults=read_faults(session),
        fleet=fleet,
        queue=read_queue(session),
        # A job in review runs in name only.
        running=running - held.total,
        paused=paused,
        ended=read_ended(session),
        distribution=read_distribution(session),
        stored=tuple(most_stored(session, defaults, at_most=MAX_PROJECTS_SHOWN)),
        stored_total=int(stored_total),
        counted_at=counted_at,
        near_limits=tuple(
            nearest_limits(session, defaults, from_percent=NEAR_PERCENT, at_most=MAX_PROJECTS_SHOWN)
        ),
        disk=_disk(storage),
        first_steps=first_steps(session, workers=fleet.alive),
    )


def _disk(storage: Storage) -> Disk | None:
    if storage.root is None:
        return None
    try:
        usage = shutil.disk_usage(storage.root)
    except OSError:
        # The page of the system says what is wrong with it.
        return None
    return Disk(free=usage.free, whole=usage.total)
