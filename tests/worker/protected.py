"""Customers' jobs on an aligned toy, with or without a provider's protection, and what came of them."""

from __future__ import annotations

import torch

from models.evaluation import latest_evaluation
from models.job import Job, JobEvent, JobStatus
from models.model_version import ModelVersion
from models.tuning import AppliedProtection, TuningProtection
from tests.worker.toy_provider import ROWS, Provider
from worker.adapter_files import read_adapter
from worker.low_rank import LowRank

TUNED = "ft:toy-base:org:mine:1"


def tune(
    provider: Provider,
    tuning: TuningProtection | None = None,
    rows: list[dict[str, object]] = ROWS,
    start: ModelVersion | None = None,
    steps: int = 4,
) -> str:
    return provider.finetune(rows, start or aligned(provider), tuning=tuning, steps=steps)


def aligned(provider: Provider, parameters: str = "adapter") -> ModelVersion:
    provider.run(provider.align("aligned", parameters=parameters))
    return provider.version("aligned")


def succeeded(job: Job) -> Job:
    assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
    return job


def applied(provider: Provider, job: Job) -> AppliedProtection:
    recipe = provider.version(job.result_model_id).recipe
    assert "tuning" not in recipe
    return AppliedProtection.model_validate(recipe["protection"])


def updates(provider: Provider, version: ModelVersion) -> dict[str, LowRank]:
    shop = provider.shop
    return read_adapter(shop.storage.folder(version.source["prefix"], shop.cache))


def forget(provider: Provider, job: Job) -> None:
    """Make room for a second job that makes a version of the same name."""
    with provider.shop.sessions.begin() as session:
        version = session.get_one(ModelVersion, job.result_model_id)
        evaluation = latest_evaluation(session, version.id)
        assert evaluation is not None
        session.delete(evaluation)
        session.flush()
        session.delete(version)


def told(provider: Provider, job: Job, type: str = "message") -> list[JobEvent]:
    return [event for event in provider.events(job.id) if event.type == type]


def as_trained(provider: Provider, start: ModelVersion) -> dict[str, LowRank]:
    """Give what the same job makes without protection."""
    job = succeeded(provider.run(tune(provider, None, start=start)))
    found = updates(provider, provider.version(job.result_model_id))
    forget(provider, job)
    return found


def assert_same(found: LowRank, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    assert torch.allclose(found.dense(), expected, rtol=0, atol=1e-5 * scale + 1e-9)
