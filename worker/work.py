"""What a worker has at hand, and what one job is about, read once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from models.file import File, get_held_file
from models.hyperparameters import LoraConfig, Recipe
from models.integrations import INTEGRATIONS, MlflowIntegration, WandbIntegration
from models.job import Job, JobKind
from models.methods import BoosterConfig, DpoConfig
from models.model_version import ModelVersion, VersionKind, get_version
from models.rows import Conversation, Pair, Row, read_data_set
from models.safety_set import SafetySet
from models.session import SessionFactory
from models.storage import Storage
from worker import lora
from worker.base_models import LoadedBase, ResidentBase, locate
from worker.trackers.run import Tracking
from worker.weights import train_linear_weights


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a worker process has at hand for every job."""

    sessions: SessionFactory
    storage: Storage
    bases: ResidentBase
    cache: Path
    owner: str
    lease_seconds: int
    #: How many jobs of one project may run at once, unless the project has a limit of its own; 0: any.
    jobs_running: int = 0
    tracking: Tracking = field(default_factory=Tracking)

    def folder(self, root: ModelVersion) -> Path:
        """Give the folder with a root's files.

        Raises:
            BaseUnavailable: it cannot be read.
        """
        return root_folder(root, self.storage, self.cache)

    def base(self, root: ModelVersion) -> LoadedBase:
        """Give a root, loaded.

        Raises:
            BaseUnavailable: its files cannot be read.
        """
        return self.bases.get(root.id, lambda: self.folder(root))


@dataclass(frozen=True, slots=True)
class Work:
    """One job's facts. `start` is the version to train on, `root` the weights below it."""

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
    integrations: tuple[WandbIntegration | MlflowIntegration, ...] = ()

    @property
    def file_hashes(self) -> dict[str, str]:
        """The sha256 of each file that the job names, by the field that names it."""
        named = {"training_file": self.training_file, "validation_file": self.validation_file}
        return {name: file.sha256 for name, file in named.items() if file is not None}

    @property
    def row_shape(self) -> type[Row]:
        """What the rows of its files must be."""
        return Pair if isinstance(self.recipe.method, DpoConfig) else Conversation

    @property
    def tenant_id(self) -> str | None:
        """The project that the new version will belong to; None for the provider's own."""
        return None if self.kind == JobKind.ALIGN else self.project_id


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
            return get_held_file(session, job.project_id, file_id) if file_id else None

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
            integrations=tuple(INTEGRATIONS.validate_python(job.integrations)),
        )


def lineage(work: Work, shop: Workshop) -> list[ModelVersion]:
    """Give the versions from the one that the job began with to the base."""
    versions = [work.start]
    with shop.sessions() as session:
        while (parent := versions[-1].parent_id) is not None:
            versions.append(session.get_one(ModelVersion, parent))
    return versions


def origin(work: Work, shop: Workshop) -> ModelVersion:
    """Give the aligned model that all tuning began with; where nothing was aligned, the base."""
    return next(v for v in lineage(work, shop) if v.kind != VersionKind.TUNED)


def read_rows(
    file: File | None, storage: Storage, param: str, shape: type[Row] = Conversation
) -> list[Row]:
    """Read a data set's rows; none when the job names no such file.

    Raises:
        InvalidRows: naming every row that is faulty or not of this shape.
    """
    return read_data_set(storage.lines(file.storage_key), shape, param=param) if file else []


def root_folder(root: ModelVersion, storage: Storage, cache: Path) -> Path:
    """Give the folder with a root's files: a base's, or those that an alignment in full parameters left.

    Raises:
        BaseUnavailable: it cannot be read.
    """
    if "prefix" in root.source:
        return storage.folder(root.source["prefix"], cache)
    return locate(root.source)


@contextmanager
def with_version(
    version: ModelVersion, root: ModelVersion, shop: Workshop
) -> Iterator[tuple[LoadedBase, PreTrainedModel]]:
    """Lend a version to be used, not trained: its root with the version's adapter on it, if it is one."""
    base = shop.base(root)
    if not version.is_adapter:
        yield base, base.model
        return
    model = load_adapter(base, version, shop, trainable=False)
    try:
        # A PEFT model answers to all that is asked of a transformers model here.
        yield base, cast(PreTrainedModel, model)
    finally:
        lora.detach(model)


@contextmanager
def to_train(base: LoadedBase, work: Work, shop: Workshop) -> Iterator[PreTrainedModel | PeftModel]:
    """Lend the root with what the job trains: its own weights, the parent's adapter, or a fresh one."""
    recipe = work.recipe
    model: PreTrainedModel | PeftModel = base.model
    try:
        if recipe.parameters == "full":
            train_linear_weights(base.model)
        elif work.start.is_adapter:
            model = load_adapter(base, work.start, shop, trainable=True)
        else:
            model = lora.attach(base.model, recipe.lora, recipe.train.seed)
        if isinstance(recipe.method, BoosterConfig) and recipe.method.needs_adapter:
            model = lora.attach_attacker(model, LoraConfig(r=recipe.method.attacker_rank))
        yield model
    finally:
        if recipe.parameters == "full":
            # The resident weights are no longer the base's.
            shop.bases.drop()
        elif isinstance(model, PeftModel):
            lora.detach(model)


def load_adapter(
    base: LoadedBase, version: ModelVersion, shop: Workshop, *, trainable: bool
) -> PeftModel:
    """Put a version's adapter on its root, in place.

    Raises:
        UnusableAdapter: it does not fit.
    """
    folder = shop.storage.folder(version.source["prefix"], shop.cache)
    return lora.load(base.model, folder, trainable=trainable)
