"""/v1/keys: API keys, for operators."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.deps import OperatorDep, SessionDep, require_operator
from api.keys import service
from api.keys.schemas import CreatedKey, CreateKey, KeyObject
from api.schemas import Listing

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[Depends(require_operator)])


@router.post("")
def create(body: CreateKey, caller: OperatorDep, session: SessionDep) -> CreatedKey:
    """Make a key. Its secret is in this answer and nowhere else, ever."""
    key, token = service.make_key(session, caller.project, body)
    return CreatedKey(**KeyObject.of(key).model_dump(), key=token)


@router.get("")
def list_keys(session: SessionDep) -> Listing[KeyObject]:
    """List every project's keys, newest first."""
    return Listing(data=[KeyObject.of(key) for key in service.list_keys(session)])


@router.delete("/{key_id}")
def revoke(key_id: str, session: SessionDep) -> KeyObject:
    """Revoke a key; it stops working at once."""
    return KeyObject.of(service.revoke_key(session, key_id))
