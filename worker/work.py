"""What a worker has at hand, and what one job is about, read once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from models.file import File, get_file
from models.hyperparameters import Recipe
from models.job import Job, JobKind
from models.model_version import ModelVersion, VersionKind, get_version
from models.rows import Conversation, read_conversations
from models.safety_set import SafetySet
from models.session import SessionFactory
from models.storage import Storage
from worker import lora
from worker.base_models import LoadedBase, ResidentBase


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a worker process has at hand for every job."""

    sessions: SessionFactory
    storage: Storage
    bases: ResidentBase
    cache: Path
    owner: str
    lease_seconds: int


@dataclass(frozen=True, slots=True)
class Work:
    """One job's facts. `start` is the version to train on, `root` the base at the bottom of its lineage."""

    job_id: str
    kind: JobKind
    recipe: Recipe
    start: ModelVersion
    root: ModelVersion
    result_id: str
    project_id: str
    training_file: File | None
    validation_file: File | None
    safety: SafetySet


def read_work(job_id: str, shop: Workshop) -> Work:
    """Read the job, its lineage, its files' rows in the database, and its safety set.

    Raises:
        DomainError: something that the job names is gone.
    """
    with shop.sessions() as session:
        job = session.get_one(Job, job_id)
        start = get_version(session, job.model_id, project_id=None)
        root = get_version(session, start.root_id, project_id=None)

        def file(file_id: str | None) -> File | None:
            return get_file(session, job.project_id, file_id) if file_id else None

        return Work(
            job_id=job.id,
            kind=JobKind(job.kind),
            recipe=Recipe.model_validate(job.recipe),
            start=start,
            root=root,
            result_id=job.result_model_id,
            project_id=job.project_id,
            training_file=file(job.training_file_id),
            validation_file=file(job.validation_file_id),
            safety=SafetySet.load(shop.storage.folder(start.safety_prefix, shop.cache)),
        )


def read_rows(file: File | None, storage: Storage, param: str) -> list[Conversation]:
    """Read a data set's rows; none when the job names no such file."""
    return read_conversations(storage.lines(file.storage_key), param=param) if file else []


@contextmanager
def with_adapter(
    base: LoadedBase, version: ModelVersion, shop: Workshop, *, trainable: bool
) -> Iterator[PeftModel]:
    """Lend the base with a version's adapter on it, and take the adapter off again."""
    folder = shop.storage.folder(version.source["prefix"], shop.cache)
    model = lora.load(base.model, folder, trainable=trainable)
    try:
        yield model
    finally:
        lora.detach(model)


@contextmanager
def to_train(base: LoadedBase, work: Work, shop: Workshop) -> Iterator[PeftModel]:
    """Lend the base with the adapter that the job trains: the parent's, or a fresh one on a raw base."""
    if work.start.kind != VersionKind.BASE:
        with with_adapter(base, work.start, shop, trainable=True) as model:
            yield model
        return
    fresh = lora.attach(base.model, work.recipe.lora, work.recipe.train.seed)
    try:
        yield fresh
    finally:
        lora.detach(fresh)
