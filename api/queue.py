"""The doorbell: Celery carries a job's id and nothing else, so that losing the broker loses nothing.

The only module of the api that knows Celery. It calls the worker's task by name and never imports it.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy import update

from api.metrics.counts import DOORBELL_FAILURES
from models.base import utc_now
from models.job import Job, JobStatus
from models.session import SessionFactory
from models.settings import Settings

log = structlog.get_logger(__name__)

#: The name that `worker.tasks` registers, and the queue that it listens to.
TASK = "titer.run_job"
QUEUE = "titer"
CONNECT_SECONDS = 2.0
BROKER_ERRORS = (KombuError, RedisError, OSError)


class Doorbell:
    """Sends job ids to whichever worker is free."""

    def __init__(self, settings: Settings) -> None:
        """Prepare the broker's address; nothing is connected yet."""
        self._celery = Celery("titer-api", broker=settings.redis_url, set_as_current=False)
        self._celery.conf.update(
            task_default_queue=QUEUE,
            task_ignore_result=True,
            broker_connection_timeout=CONNECT_SECONDS,
            broker_transport_options={
                "visibility_timeout": settings.visibility_timeout_seconds,
                "socket_connect_timeout": CONNECT_SECONDS,
                "socket_timeout": CONNECT_SECONDS,
                # By default a request would wait a minute for a broker that is down.
                "max_retries": 0,
            },
        )

    def send(self, job_ids: Iterable[str]) -> list[str]:
        """Send the ids; give those that the broker took. A broker that is down takes none."""
        sent: list[str] = []
        try:
            for job_id in job_ids:
                self._celery.send_task(TASK, args=[job_id], queue=QUEUE, retry=False)
                sent.append(job_id)
        except BROKER_ERRORS as error:
            DOORBELL_FAILURES.inc()
            log.warning("broker_unavailable", kind=type(error).__name__)
        return sent

    def waiting(self) -> int | None:
        """Say how many messages no worker has taken yet; None when the broker is down."""
        try:
            with self._celery.connection_for_read() as connection:
                declared = connection.default_channel.queue_declare(queue=QUEUE)
                return int(declared.message_count)
        except BROKER_ERRORS as error:
            DOORBELL_FAILURES.inc()
            log.warning("broker_unavailable", kind=type(error).__name__)
            return None

    def close(self) -> None:
        """Let the connections go."""
        self._celery.close()


def ring(sessions: SessionFactory, doorbell: Doorbell, job_ids: Iterable[str]) -> int:
    """Ring for committed jobs and note when; give how many. The sweeper rings for those left out."""
    sent = doorbell.send(job_ids)
    if sent:
        with sessions.begin() as session:
            session.execute(
                update(Job)
                .where(Job.id.in_(sent), Job.status == JobStatus.QUEUED)
                .values(rung_at=utc_now())
                .execution_options(synchronize_session=False)
            )
    return len(sent)
