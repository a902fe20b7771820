"""Workers: those that have the running jobs, an idle one, one that stopped and one that fell silent."""

from __future__ import annotations

from datetime import datetime, timedelta
from importlib.metadata import version

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.base import utc_now
from models.job import Job, JobStatus, awaiting_review
from models.worker import Worker

GIB = 1024**3
H100 = "cuda: NVIDIA H100 80GB HBM3"
# Nobody speaks for made-up workers and nobody works for them: they stay, with their jobs, for a day.
STAYS = timedelta(days=1)


def seed_workers(session: Session) -> list[Worker]:
    """Give each running job a worker that holds it, and add workers that hold none."""
    now = utc_now()
    running = session.scalars(
        select(Job)
        .where(Job.status == JobStatus.RUNNING, ~awaiting_review())
        .order_by(Job.created_at)
    ).all()
    workers = []
    for number, job in enumerate(running):
        worker = _worker(f"gpu-{number + 1}:{4100 + number}", H100, now, seen_at=now + STAYS)
        worker.base_id, worker.job_id = "sandbox-base", job.id
        worker.memory_bytes = 80 * GIB
        worker.memory_used_bytes = (31 + 9 * number) * GIB
        worker.utilisation_percent = 93.0 - 11 * number
        job.lease_owner, job.lease_expires_at = worker.id, now + STAYS
        job.claimed_at = job.started_at
        workers.append(worker)
    idle = _worker("spare:977", "cpu", now, seen_at=now + STAYS)
    idle.memory_bytes, idle.memory_used_bytes = 128 * GIB, 2 * GIB
    silent = _worker("gpu-9:4188", H100, now, seen_at=now - timedelta(minutes=14))
    silent.base_id = "sandbox-base"
    silent.memory_bytes, silent.memory_used_bytes = 80 * GIB, 77 * GIB
    stopped = _worker("gpu-8:3999", H100, now, seen_at=now - timedelta(hours=3))
    stopped.stopped_at = stopped.seen_at
    workers += [idle, silent, stopped]
    session.add_all(workers)
    session.flush()
    return workers


def _worker(id: str, device: str, now: datetime, *, seen_at: datetime) -> Worker:
    return Worker(
        id=id,
        host=id.partition(":")[0],
        started_at=now - timedelta(hours=30),
        seen_at=seen_at,
        device=device,
        version=version("titer"),
    )
