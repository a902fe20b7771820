"""The Celery side of a worker: one task that takes an id. The only Celery import here.

Celery is a doorbell: it says that there is work. Which job is to be run, and by whom, is decided in the
database (`models.fair_queue`): a bell that rings twice, or late, or for a job that is gone, does no harm.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from functools import cache
from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from models.tracing import configure_tracing, stop_tracing
from worker import pipeline
from worker.base_models import ResidentBase
from worker.log import configure_worker_logging
from worker.metrics import serve_metrics
from worker.presence import Presence
from worker.trackers.run import Tracking
from worker.work import Workshop

RUN_JOB = "titer.run_job"
QUEUE = "titer"
PR_SET_PDEATHSIG = 1

settings = Settings()
app = Celery("titer", broker=settings.redis_url)
app.conf.update(
    task_default_queue=QUEUE,
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": settings.visibility_timeout_seconds,
        "priority_steps": list(range(10)),
    },
)


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    configure_worker_logging(as_json=settings.log_json, level=settings.log_level)


@worker_process_init.connect
def _die_with_parent(**_: Any) -> None:
    # A killed worker must not leave a child that trains on: the lease would go to another.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@worker_process_init.connect
def _begin_to_speak(**_: Any) -> None:
    _presence().start()


@worker_process_init.connect
def _let_be_watched(**_: Any) -> None:
    # In the pool's child: threads do not survive the fork.
    configure_tracing(settings.otel_exporter_otlp_endpoint, service="titer-worker")
    token = settings.metrics_token.get_secret_value()
    if settings.metrics_port and token:
        serve_metrics(host=settings.metrics_host, port=settings.metrics_port, token=token)


@worker_process_shutdown.connect
def _say_goodbye(**_: Any) -> None:
    _presence().stop()
    stop_tracing()


@cache
def _presence() -> Presence:
    shop = _workshop()
    return Presence(shop.sessions, shop.bases, owner=shop.owner)


@cache
def _workshop() -> Workshop:
    # Made in the pool's child, after the fork: connections and devices do not survive one.
    return Workshop(
        sessions=session_factory(make_engine(settings.database_url, pool_size=2)),
        storage=Storage(settings.storage_url),
        bases=ResidentBase(),
        cache=settings.cache_dir,
        owner=f"{socket.gethostname()}:{os.getpid()}",
        lease_seconds=settings.lease_seconds,
        tracking=Tracking(
            wandb_api_key=settings.wandb_api_key,
            wandb_base_url=settings.wandb_base_url,
            wandb_entity=settings.wandb_entity,
            mlflow_tracking_uri=settings.mlflow_tracking_uri,
            mlflow_token=settings.mlflow_token,
        ),
        jobs_running=settings.quota_jobs_running,
    )


@app.task(name=RUN_JOB)
def run_job(job_id: str) -> None:
    """Run the job whose turn it is, which need not be the one that the bell was rung for."""
    with structlog.contextvars.bound_contextvars(rung_for=job_id):
        outcome = pipeline.run_next(_workshop())
    if outcome in (pipeline.INFRASTRUCTURE_FAILED, pipeline.MACHINE_FAILED):
        # The next job would meet the same fault: none is claimed before this one's lease has run out.
        time.sleep(settings.lease_seconds)
    if outcome == pipeline.MACHINE_FAILED:
        # A broken device context is broken for good; the pool makes another process, with a new one.
        _say_goodbye()
        os._exit(1)
