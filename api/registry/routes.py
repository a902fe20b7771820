"""/v1/models and /v1/base_models: what can be tuned and used, and what the gate says of it."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter

from api.deps import (
    CallerDep,
    ProviderDep,
    ReviewerDep,
    SessionDep,
    StorageDep,
    after_commit,
)
from api.registry import service
from api.registry.schemas import CreateBase, ModelObject, Review, ReviewedModel
from api.schemas import Deleted, Listing

router = APIRouter(tags=["models"])


@router.get("/v1/models")
def list_models(caller: CallerDep, session: SessionDep) -> Listing[ModelObject]:
    """List the models that the caller may use; staff see every model with its gate."""
    versions = service.list_models(session, project_id=caller.visible_project_id)
    return Listing(data=service.show_models(session, versions, is_staff=caller.is_staff))


@router.post("/v1/base_models")
def register_base(
    body: CreateBase, caller: ProviderDep, session: SessionDep, storage: StorageDep
) -> ModelObject:
    """Register a base model: a folder on the server or a hub repository, pinned to its commit."""
    version = service.register_base(session, storage, body, by=caller.key)
    return service.show_models(session, [version], is_staff=True)[0]


# A model's name may hold slashes, and the stock client sends them escaped; `path` takes both.
@router.post("/v1/models/{model:path}/review")
def review(model: str, body: Review, caller: ReviewerDep, session: SessionDep) -> ReviewedModel:
    """Release or reject a model that the gate holds for a person."""
    version, job = service.review_version(session, model, body, key=caller.key)
    shown = service.show_models(session, [version], is_staff=True)[0]
    return ReviewedModel(model=shown, job=job.id, status=job.status)


@router.get("/v1/models/{model:path}")
def retrieve(model: str, caller: CallerDep, session: SessionDep) -> ModelObject:
    """Show one model with its lineage and safety."""
    version = service.get_model(session, model, project_id=caller.visible_project_id)
    return service.show_models(session, [version], is_staff=caller.is_staff)[0]


@router.delete("/v1/models/{model:path}")
def delete(model: str, caller: CallerDep, session: SessionDep, storage: StorageDep) -> Deleted:
    """Delete a tuned model of your own; providers delete any that nothing rests on."""
    version = service.delete_model(session, model, by=caller.key, is_provider=caller.is_provider)
    prefix = version.source.get("prefix")
    if isinstance(prefix, str):
        after_commit(session, partial(storage.delete_folder, prefix))
    return Deleted(id=version.id, object="model")
