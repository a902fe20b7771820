"""The training curve, told as events: loss, accuracy, rate, norm, validation, and the canary's harmful loss.

One event every few steps, and wherever the canary or validation rows were measured; the job's estimated
finish follows the pace. What is told goes to the customer's trackers as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from time import monotonic

from models.base import utc_now
from models.job import Stage, append_event
from worker.leased_job import LeasedJob
from worker.metrics import STEP_SECONDS, TRAINED_TOKENS
from worker.trainers.loop import StepMetrics

Send = Callable[[int, Mapping[str, object]], None]


class TrainingLog:
    """Call it with each step's metrics."""

    def __init__(
        self, job: LeasedJob, *, every: int, send: Send = lambda _step, _data: None
    ) -> None:
        """Tell every `every` steps; the first and last step are always told.

        Args:
            job: the lease.
            every: steps between two tellings.
            send: is given the step and what was told of it, once it is written down.
        """
        self._job = job
        self._every = every
        self._send = send
        self._first: tuple[int, float] | None = None
        self._before: tuple[int, float] | None = None

    def __call__(self, metrics: StepMetrics) -> None:
        """Write the step down, if it is one to be told."""
        now = monotonic()
        self._count(metrics.tokens, now)
        self._first = self._first or (metrics.step, now)
        is_told = (
            metrics.step == 1
            or metrics.step % self._every == 0
            or metrics.step == metrics.total_steps
            or metrics.canary_loss is not None
            or metrics.validation
        )
        if not is_told:
            return
        data = {
            "stage": Stage.TRAIN,
            "total_steps": metrics.total_steps,
            "learning_rate": metrics.learning_rate,
            "grad_norm": metrics.grad_norm,
            "trained_tokens": metrics.tokens,
            **curve_point(metrics),
            **metrics.diagnostics,
        }
        message = f"Step {metrics.step}/{metrics.total_steps}: training loss={metrics.loss:.4f}"
        if "full_valid_loss" in metrics.validation:
            message += f", full validation loss={metrics.validation['full_valid_loss']:.4f}"
        elif "valid_loss" in metrics.validation:
            message += f", validation loss={metrics.validation['valid_loss']:.4f}"
        with self._job.write() as (session, job):
            append_event(session, job, message, type="metrics", data=data)
            job.trained_tokens = metrics.tokens
            since, started = self._first
            if metrics.step > since:
                pace = (now - started) / (metrics.step - since)
                left = pace * (metrics.total_steps - metrics.step)
                job.estimated_finish = utc_now() + timedelta(seconds=left)
        self._send(metrics.step, data)

    def _count(self, tokens: int, now: float) -> None:
        # The first step has nothing before it: how long it took is not known, so its tokens do not count either.
        if self._before is not None:
            tokens_before, at = self._before
            STEP_SECONDS.labels(self._job.kind).observe(now - at)
            TRAINED_TOKENS.labels(self._job.kind).inc(tokens - tokens_before)
        self._before = tokens, now


def curve_point(metrics: StepMetrics) -> dict[str, float | None]:
    """Give what a step's metrics say of the model, by the names that OpenAI's clients know."""
    return {
        "step": metrics.step,
        "train_loss": metrics.loss,
        "train_mean_token_accuracy": metrics.token_accuracy,
        **metrics.validation,
        "canary_loss": metrics.canary_loss,
    }
