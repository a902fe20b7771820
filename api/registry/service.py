"""Model versions: registering bases, who sees what, deletion, and people's decisions on held models."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import and_, not_, or_, select
from sqlalchemy.orm import Session

from api.registry.base_models import find_base
from api.registry.names import MAX_NAME, NAME_PATTERN, claim_name
from api.registry.safety import verdicts
from api.registry.schemas import CreateBase, ModelObject, Review
from api.reviews.service import NotHeld, decide
from models.api_key import ApiKey, Project
from models.audit import record
from models.base import unix, utc_now
from models.errors import Conflict, DomainError, Forbidden
from models.job import TERMINAL, Job, JobKind, JobStatus
from models.model_version import Gate, ModelNotFound, ModelVersion, VersionKind, get_version
from models.safety_set import InvalidSafetySet, SafetySet
from models.storage import Storage

PROVIDER = "titer"


class ModelInUse(Conflict):
    """Something still rests on the model."""

    code = "model_in_use"


class NotYourModel(Forbidden):
    """The provider's models cannot be deleted with this key."""

    code = "not_your_model"


class InvalidName(DomainError):
    """A base's name cannot be made from its source. Give a `name`."""

    code = "invalid_name"


def register_base(
    session: Session, storage: Storage, asked: CreateBase, *, by: ApiKey
) -> ModelVersion:
    """Check a base and its safety set, and make it known.

    Raises:
        InvalidBase: its files are not those of a causal language model in safetensors.
        HubUnavailable: it is no folder, and the hub does not answer.
        InvalidSafetySet: a file of the set is missing or faulty.
        NameTaken: a model has this name.
    """
    found = find_base(asked.source, asked.revision)
    name = asked.name or _own_name(asked.source)
    folder = Path(asked.safety_set).expanduser()
    if not os.path.isdir(folder):
        raise InvalidSafetySet(
            folder.name or "safety_set", "there is no folder there that the server may read"
        )
    safety_set = SafetySet.load(folder)
    claim_name(session, name)
    prefix = f"safety/{safety_set.hash}"
    if not storage.has_folder(prefix):
        storage.put_folder(prefix, folder)
    version = ModelVersion(
        id=name,
        kind=VersionKind.BASE,
        root_id=name,
        source=found.source,
        safety_prefix=prefix,
        data_hashes={**found.data_hashes, "safety_set": safety_set.hash},
    )
    session.add(version)
    session.flush()
    record(
        session,
        actor=by,
        action="base.registered",
        subject=("model", version.id),
        details={"data_hashes": version.data_hashes},
    )
    return version


def list_models(session: Session, *, project_id: str | None) -> Sequence[ModelVersion]:
    """Give the models that a project may use, or all of them to operators (`project_id` None)."""
    query = select(ModelVersion).where(ModelVersion.deleted_at.is_(None))
    if project_id is not None:
        query = query.where(
            ModelVersion.gate == Gate.RELEASED,
            ModelVersion.kind != VersionKind.BASE,
            or_(ModelVersion.project_id.is_(None), ModelVersion.project_id == project_id),
        )
    return session.scalars(query.order_by(ModelVersion.created_at.desc(), ModelVersion.id)).all()


def get_model(session: Session, model_id: str, *, project_id: str | None) -> ModelVersion:
    """Give a model for looking at: customers see released aligned ones and all of their own.

    Raises:
        ModelNotFound: it is absent, or not theirs to see.
    """
    version = get_version(session, model_id, project_id=project_id)
    is_hidden = version.project_id is None and (
        version.kind == VersionKind.BASE or not version.is_released
    )
    if project_id is not None and is_hidden:
        raise ModelNotFound(f"The model {model_id[:128]!r} does not exist.", param="model")
    return version


def show_models(
    session: Session, versions: Sequence[ModelVersion], *, is_staff: bool
) -> list[ModelObject]:
    """Show versions, with as many queries for a list as for one."""
    safety = verdicts(session, versions)
    projects = {
        project.id: project
        for project in session.scalars(
            select(Project).where(
                Project.id.in_({v.project_id for v in versions if v.project_id is not None})
            )
        )
    }
    return [
        ModelObject(
            id=version.id,
            created=unix(version.created_at),
            owned_by=projects[version.project_id].organization_id
            if version.project_id is not None
            else PROVIDER,
            kind=version.kind,
            gate=version.gate,
            gate_reasons=version.gate_reasons,
            parent=version.parent_id,
            root=version.root_id,
            method=version.method,
            job=version.job_id if is_staff or version.project_id is not None else None,
            recipe=version.recipe,
            data_hashes=version.data_hashes,
            safety=safety.get(version.id),
            source=version.source if is_staff else None,
        )
        for version in versions
    ]


def delete_model(session: Session, model_id: str, *, by: ApiKey, is_provider: bool) -> ModelVersion:
    """Forget a model that nothing rests on. Its weights go after the commit.

    Raises:
        ModelNotFound: it is absent, or another project's.
        NotYourModel: it is the provider's, and the caller no operator.
        ModelInUse: other models were made from it, or a job that has not ended uses or makes it.
    """
    visible = None if is_provider else by.project_id
    version = get_model(session, model_id, project_id=visible)
    if not is_provider and version.project_id != by.project_id:
        raise NotYourModel
    # Waits for jobs that are just being made on this model, and makes later ones not find it.
    session.refresh(version, with_for_update=True)
    version = get_model(session, model_id, project_id=visible)
    child = session.scalar(
        select(ModelVersion.id)
        .where(ModelVersion.parent_id == version.id, ModelVersion.deleted_at.is_(None))
        .limit(1)
    )
    if child is not None:
        raise ModelInUse(f"Other models were made from {version.id!r}.", param="model")
    user = session.scalar(
        select(Job.id)
        .where(
            or_(Job.model_id == version.id, Job.id == version.job_id),
            Job.status.not_in(TERMINAL),
            # The provider's, which nobody else can end: resumed later it says that the model is gone.
            not_(and_(Job.kind == JobKind.EVALUATE, Job.status == JobStatus.PAUSED)),
        )
        .limit(1)
    )
    if user is not None:
        raise ModelInUse(f"The job {user} uses this model and has not ended.", param="model")
    version.deleted_at = utc_now()
    record(
        session,
        actor=by,
        action="model.deleted",
        subject=("model", version.id),
        project_id=version.project_id,
    )
    return version


def review_version(
    session: Session, model_id: str, review: Review, *, key: ApiKey
) -> tuple[ModelVersion, Job]:
    """Carry out a reviewer's decision on a held model, which is known here by its name.

    Raises:
        ModelNotFound: there is no such model.
        NotHeld: nobody waits for a decision on it.
        AlreadyApproved: the same reviewer cannot be the second one.
    """
    version = get_version(session, model_id, project_id=None)
    if version.job_id is None:
        raise NotHeld(param="model")
    return version, decide(session, version.job_id, review.decision, review.reason, by=key)


def _own_name(source: str) -> str:
    path = Path(source).expanduser()
    name = path.resolve().name if path.is_dir() else source
    if len(name) > MAX_NAME or not re.fullmatch(NAME_PATTERN, name):
        raise InvalidName(param="name")
    return name
