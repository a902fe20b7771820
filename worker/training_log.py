"""The training curve, told as events: loss, accuracy, rate, norm and the canary's harmful loss.

One event every few steps, and at each canary measurement; the job's estimated finish follows the pace.
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

from models.base import utc_now
from models.job import Stage, append_event
from worker.leased_job import LeasedJob
from worker.trainers.loop import StepMetrics


class TrainingLog:
    """Call it with each step's metrics."""

    def __init__(self, job: LeasedJob, *, every: int) -> None:
        """Tell every `every` steps; the first and last step are always told."""
        self._job = job
        self._every = every
        self._first: tuple[int, float] | None = None

    def __call__(self, metrics: StepMetrics) -> None:
        """Write the step down, if it is one to be told."""
        now = monotonic()
        self._first = self._first or (metrics.step, now)
        is_told = (
            metrics.step == 1
            or metrics.step % self._every == 0
            or metrics.step == metrics.total_steps
            or metrics.canary_loss is not None
        )
        if not is_told:
            return
        data = {
            "stage": Stage.TRAIN,
            "step": metrics.step,
            "total_steps": metrics.total_steps,
            "train_loss": metrics.loss,
            "train_mean_token_accuracy": metrics.token_accuracy,
            "learning_rate": metrics.learning_rate,
            "grad_norm": metrics.grad_norm,
            "trained_tokens": metrics.tokens,
            "canary_loss": metrics.canary_loss,
            **metrics.diagnostics,
        }
        message = f"Step {metrics.step}/{metrics.total_steps}: training loss={metrics.loss:.4f}"
        with self._job.write() as (session, job):
            append_event(session, job, message, type="metrics", data=data)
            job.trained_tokens = metrics.tokens
            since, started = self._first
            if metrics.step > since:
                pace = (now - started) / (metrics.step - since)
                left = pace * (metrics.total_steps - metrics.step)
                job.estimated_finish = utc_now() + timedelta(seconds=left)
