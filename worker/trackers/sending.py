"""Sends a job's curve to every tracker that its customer named, and never lets one of them harm the job.

A tracker that is not set up, or fails once, is named in the job's log and left out from then on. What it said
stays in the worker's log: it may name addresses that are none of the customer's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from models.integrations import MlflowIntegration, WandbIntegration
from models.job import LeaseLost, PauseRequested
from worker.leased_job import LeasedJob
from worker.trackers.mlflow_run import MlflowRun
from worker.trackers.run import NotConfigured, Outcome, Run, Subject, Tracking, numbers_in
from worker.trackers.wandb_run import WandbRun
from worker.training_log import Send
from worker.work import Work, Workshop

log = structlog.get_logger(__name__)


@contextmanager
def tracked(job: LeasedJob, work: Work, shop: Workshop) -> Iterator[Send]:
    """Open the runs that the job asks for, lend what sends to all of them, and end them as the block ends.

    Raises:
        LeaseLost: the job is no longer this worker's.
    """
    runs = _Runs(job)
    subject = Subject(
        job_id=work.job_id,
        project_id=work.project_id,
        parameters=_parameters(work),
        folder=shop.cache / "trackers" / work.job_id,
    )
    outcome = Outcome.FAILED
    try:
        for wanted in work.integrations:
            runs.open(wanted, subject, shop.tracking)
        yield runs.send
        outcome = Outcome.FINISHED
    except (LeaseLost, PauseRequested):
        outcome = Outcome.STOPPED
        raise
    finally:
        runs.end(outcome)


class _Runs:
    """The runs that are open, each with the type that the customer knows it by."""

    def __init__(self, job: LeasedJob) -> None:
        self._job = job
        self._open: list[tuple[str, Run]] = []

    def open(
        self, wanted: WandbIntegration | MlflowIntegration, subject: Subject, tracking: Tracking
    ) -> None:
        try:
            self._open.append((wanted.type, _run(wanted, subject, tracking)))
        except NotConfigured as missing:
            log.info("tracker_not_configured", tracker=wanted.type, missing=str(missing))
            self._job.tell(
                f"The integration {wanted.type} is not configured at this service: {missing}. "
                "Nothing is sent there.",
                level="warn",
                data={"integration": wanted.type, "code": "integration_not_configured"},
            )
        except Exception as error:
            self._tell_failure(wanted.type, error)

    def send(self, step: int, data: Mapping[str, object]) -> None:
        numbers = numbers_in(data)
        for name, run in list(self._open):
            try:
                run.send(step, numbers)
            except Exception as error:
                self._open.remove((name, run))
                self._tell_failure(name, error)

    def end(self, outcome: Outcome) -> None:
        for name, run in self._open:
            try:
                run.end(outcome)
            except Exception as error:
                log.warning("tracker_not_ended", tracker=name, kind=type(error).__name__)

    def _tell_failure(self, name: str, error: Exception) -> None:
        log.warning("tracker_failed", tracker=name, kind=type(error).__name__)
        self._job.tell(
            f"The integration {name} failed. The job goes on without it.",
            level="warn",
            data={"integration": name, "code": "integration_failed"},
        )


def _run(wanted: WandbIntegration | MlflowIntegration, subject: Subject, tracking: Tracking) -> Run:
    match wanted:
        case WandbIntegration():
            return WandbRun(wanted.wandb, subject, tracking)
        case MlflowIntegration():
            return MlflowRun(wanted.mlflow, subject, tracking)


def _parameters(work: Work) -> dict[str, str | int | float]:
    recipe = work.recipe
    return {
        "model": work.start.id,
        "seed": recipe.train.seed,
        "n_epochs": recipe.n_epochs or 1,
        "batch_size": recipe.train.batch_size,
        "learning_rate_multiplier": recipe.learning_rate_multiplier or 1.0,
        "total_steps": recipe.train.steps,
    }
