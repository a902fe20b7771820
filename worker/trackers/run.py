"""What a tracker's run is to a job, and where trackers are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr


class NotConfigured(Exception):
    """Whoever runs the service has not set this tracker up; the text says what is missing."""


class Outcome(StrEnum):
    """How the training came to its end."""

    FINISHED = "finished"
    FAILED = "failed"
    #: Paused, cancelled, or lost to another worker.
    STOPPED = "stopped"


class Run(Protocol):
    """One job's place at a tracker. Whatever it raises, the job goes on without it."""

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send what was measured at a step."""
        ...

    def end(self, outcome: Outcome) -> None:
        """Send what is left, and close."""
        ...


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where trackers are and how they are written to: settings, never a customer's words."""

    wandb_api_key: SecretStr = field(default_factory=lambda: SecretStr(""))
    wandb_base_url: str = "https://api.wandb.ai"
    wandb_entity: str = ""
    mlflow_tracking_uri: str = ""
    mlflow_token: SecretStr = field(default_factory=lambda: SecretStr(""))


@dataclass(frozen=True, slots=True)
class Subject:
    """The job that a run is about.

    Attributes:
        job_id: the run has it too, so that a job that goes on later goes on in the same run.
        project_id: of the tenant. It is part of every name, so that no tenant writes where another does.
        parameters: the job's hyper-parameters.
        folder: where a tracker may keep what it has not sent yet.
    """

    job_id: str
    project_id: str
    parameters: Mapping[str, str | int | float]
    folder: Path


def numbers_in(data: Mapping[str, object]) -> dict[str, float]:
    """Give the finite numbers of an event's data; the rest is no curve."""
    return {
        name: float(value)
        for name, value in data.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
