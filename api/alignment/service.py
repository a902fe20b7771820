"""Making alignment jobs. All else about them is what `api.jobs.service` does for every job."""

from __future__ import annotations

import secrets

from sqlalchemy.orm import Session

from api.alignment.schemas import CreateAlignment
from api.jobs.replay import Replay, find_replayed, request_hash
from api.jobs.service import MAX_SEED, start
from api.registry.names import claim_name
from models.api_key import ApiKey
from models.audit import record
from models.errors import DomainError
from models.hyperparameters import resolve_align
from models.job import Job, JobKind
from models.model_version import VersionKind, get_version
from models.presets import fill_in


class ModelNotABase(DomainError):
    """Only the provider's own models can be aligned: a base, or an aligned one once more."""

    code = "model_not_a_base"


class ParametersDiffer(DomainError):
    """An adapter is aligned further as an adapter."""

    code = "parameters_differ"


def create_alignment(session: Session, by: ApiKey, asked: CreateAlignment, replay: Replay) -> Job:
    """Make an alignment job, or give the one that this same request made before.

    Raises:
        ModelNotFound: there is no such base.
        ModelNotABase: the model is a customer's.
        ParametersDiffer: an aligned adapter is to be aligned in full parameters.
        NameTaken: the new version's name is not free.
    """
    request_sha256 = request_hash(JobKind.ALIGN, asked)
    earlier = find_replayed(session, by.project_id, replay, request_sha256)
    if earlier is not None:
        return earlier
    base = get_version(session, asked.model, project_id=None)
    session.refresh(base, with_for_update={"read": True})
    base = get_version(session, asked.model, project_id=None)
    if base.kind == VersionKind.TUNED:
        raise ModelNotABase(f"The model {base.id!r} is a tuned model.", param="model")
    name = asked.name or f"{base.id}-{asked.method.name}"
    claim_name(session, name)
    seed = secrets.randbelow(MAX_SEED + 1) if asked.seed is None else asked.seed
    method, hyperparameters = fill_in(asked.preset, asked.method, asked.hyperparameters)
    recipe = resolve_align(method, hyperparameters, seed=seed)
    if base.is_adapter and recipe.parameters == "full":
        raise ParametersDiffer(
            f"The model {base.id!r} is an adapter and can only be aligned further as one. Choose parameters "
            "'adapter', or start from its base.",
            param="hyperparameters.parameters",
        )
    job = Job(
        project_id=by.project_id,
        kind=JobKind.ALIGN,
        model_id=base.id,
        result_model_id=name,
        seed=seed,
        recipe=recipe.model_dump(mode="json"),
        tags=asked.metadata or {},
        replay_key=replay.key,
        request_sha256=request_sha256,
    )
    start(session, job)
    record(
        session,
        actor=by,
        action="alignment.started",
        subject=("job", job.id),
        details={"model": base.id, "method": asked.method.name, "result": name},
    )
    return job
