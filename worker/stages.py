"""How long a job is in each stage, told to the metrics and the traces. Knows nothing of the database."""

from __future__ import annotations

from time import monotonic

from models import tracing
from models.job import Stage
from worker.metrics import STAGE_SECONDS


class Stages:
    """The stages of one attempt, one after the other."""

    def __init__(self, job_id: str, kind: str) -> None:
        """Begin in none."""
        self._job_id = job_id
        self._kind = kind
        self._stage: Stage | None = None
        self._began = 0.0
        self._span = tracing.NO_SPAN

    def enter(self, stage: Stage) -> None:
        """Begin a stage; to enter the one that the job is in changes nothing."""
        if stage == self._stage:
            return
        self.leave()
        self._stage, self._began = stage, monotonic()
        facts = {"titer.job.id": self._job_id, "titer.job.kind": self._kind}
        self._span = tracing.begin(stage, facts)

    def leave(self, fault: str | None = None) -> None:
        """End the stage that the job is in, if it is in one; `fault` names what ended it too early."""
        if self._stage is None:
            return
        STAGE_SECONDS.labels(self._kind, self._stage).observe(monotonic() - self._began)
        if fault is not None:
            self._span.fail(fault)
        self._span.end()
        self._stage = None
