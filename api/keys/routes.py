"""/v1/keys: API keys, for operators."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.deps import OperatorDep, SessionDep, require_operator
from api.keys import service
from api.keys.schemas import CreatedKey, CreateKey, KeyObject, RotateKey
from api.schemas import After, Identifier, Listing, PageLimit

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[Depends(require_operator)])


@router.post("")
def create(body: CreateKey, caller: OperatorDep, session: SessionDep) -> CreatedKey:
    """Make a key. Its secret is in this answer and nowhere else, ever."""
    return CreatedKey.made(*service.make_key(session, caller.project.id, body))


@router.get("")
def list_keys(
    session: SessionDep,
    project: Identifier | None = None,
    after: After = None,
    limit: PageLimit = 100,
) -> Listing[KeyObject]:
    """List every project's keys, or one's, newest first; dead ones as well."""
    keys, has_more = service.list_keys(session, project_id=project, after=after, limit=limit)
    return Listing(data=[KeyObject.of(key) for key in keys], has_more=has_more)


@router.get("/{key_id}")
def retrieve(key_id: str, session: SessionDep) -> KeyObject:
    """Show one key."""
    return KeyObject.of(service.get_key(session, key_id))


@router.post("/{key_id}/rotate")
def rotate(key_id: str, session: SessionDep, body: RotateKey | None = None) -> CreatedKey:
    """Replace a key by a new one that may do the same; the old one works for a while longer."""
    grace_seconds = (body or RotateKey()).grace_seconds
    return CreatedKey.made(*service.rotate_key(session, key_id, grace_seconds=grace_seconds))


@router.delete("/{key_id}")
def revoke(key_id: str, session: SessionDep) -> KeyObject:
    """Revoke a key; it stops working at once."""
    return KeyObject.of(service.revoke_key(session, key_id))
