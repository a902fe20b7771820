"""Making alignment jobs. All else about them is what `api.jobs.service` does for every job."""

from __future__ import annotations

import secrets

from sqlalchemy.orm import Session

from api.alignment.schemas import CreateAlignment
from api.jobs.replay import Replay, find_replayed, request_hash
from api.jobs.service import MAX_SEED, start
from api.registry.names import claim_name
from models.api_key import Project
from models.errors import DomainError
from models.hyperparameters import resolve_align
from models.job import Job, JobKind
from models.model_version import VersionKind, get_version
from models.presets import fill_in


class ModelNotABase(DomainError):
    """Only a registered base can be aligned."""

    code = "model_not_a_base"


def create_alignment(
    session: Session, project: Project, asked: CreateAlignment, replay: Replay
) -> Job:
    """Make an alignment job, or give the one that this same request made before.

    Raises:
        ModelNotFound: there is no such base.
        ModelNotABase: the model is aligned or tuned already.
        NameTaken: the new version's name is not free.
    """
    request_sha256 = request_hash(JobKind.ALIGN, asked)
    earlier = find_replayed(session, project.id, replay, request_sha256)
    if earlier is not None:
        return earlier
    base = get_version(session, asked.model, project_id=None)
    session.refresh(base, with_for_update={"read": True})
    base = get_version(session, asked.model, project_id=None)
    if base.kind != VersionKind.BASE:
        raise ModelNotABase(f"The model {base.id!r} is not a registered base.", param="model")
    name = asked.name or f"{base.id}-{asked.method.name}"
    claim_name(session, name)
    seed = secrets.randbelow(MAX_SEED + 1) if asked.seed is None else asked.seed
    method, hyperparameters = asked.method, asked.hyperparameters
    if asked.preset is not None:
        method, hyperparameters = fill_in(asked.preset, method, hyperparameters)
    job = Job(
        project_id=project.id,
        kind=JobKind.ALIGN,
        model_id=base.id,
        result_model_id=name,
        seed=seed,
        recipe=resolve_align(method, hyperparameters, seed=seed).model_dump(mode="json"),
        tags=asked.metadata or {},
        replay_key=replay.key,
        request_sha256=request_sha256,
    )
    start(session, job)
    return job
