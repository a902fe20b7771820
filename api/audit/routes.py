"""/v1/audit: who did what to what. For staff; entries are only ever added, and chained by their hashes."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from api.audit import service
from api.audit.schemas import AuditObject, AuditVerification, OrganizationLog
from api.audit.service import Wanted
from api.deps import SessionDep, require_staff
from api.schemas import After, Identifier, Listing, PageLimit, Schema
from models.audit import verify
from models.audit_chain import Head
from models.errors import DomainError

router = APIRouter(tags=["audit"], dependencies=[Depends(require_staff)])

MAX_FILTERS = 100
# The year 9999: later moments have no date.
LAST_SECOND = 253_402_300_799
Seconds = Annotated[int | None, Query(ge=0, le=LAST_SECOND)]
Words = Annotated[list[Identifier] | None, Query(max_length=MAX_FILTERS)]


class HalfAHead(DomainError):
    """A noted head is a position and a hash; give both or neither."""

    code = "half_a_head"


class OrganizationLogPage(Schema):
    """A page of the log, as the stock client reads it: by `last_id`."""

    object: Literal["list"] = "list"
    data: list[OrganizationLog]
    first_id: str | None
    last_id: str | None
    has_more: bool


def get_wanted(
    action: Annotated[
        Words, Query(description="Such as `policy.created`; may be repeated.")
    ] = None,
    actor: Annotated[Words, Query(description="Id of the key that was used.")] = None,
    subject_kind: Annotated[
        Identifier | None, Query(description="Such as `policy`, `model`, `job`, `key`.")
    ] = None,
    subject: Annotated[Words, Query(description="Id of what was acted on.")] = None,
    project: Annotated[Words, Query(description="Id of the tenant that it concerns.")] = None,
    since: Annotated[Seconds, Query(description="Unix seconds, included.")] = None,
    until: Annotated[Seconds, Query(description="Unix seconds, included.")] = None,
    text: Annotated[
        Identifier | None,
        Query(
            description="Words of action, actor, subject, reason or details, or their beginnings."
        ),
    ] = None,
) -> Wanted:
    """Read the filters of a query."""
    return Wanted(
        actions=action or (),
        actor_key_ids=actor or (),
        subject_kind=subject_kind,
        subject_ids=subject or (),
        project_ids=project or (),
        since=since,
        until=until,
        text=text,
    )


WantedDep = Annotated[Wanted, Depends(get_wanted)]


@router.get("/v1/audit")
def list_entries(
    session: SessionDep, wanted: WantedDep, after: After = None, limit: PageLimit = 20
) -> Listing[AuditObject]:
    """List audit entries, newest first."""
    found, has_more = service.list_entries(session, wanted, after=after, limit=limit)
    return Listing(data=[AuditObject.of(entry) for entry in found], has_more=has_more)


@router.get(
    "/v1/audit/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {}}}},
)
def export(request: Request, wanted: WantedDep) -> Response:
    """Read every entry, oldest first, as JSON Lines; without filters the file can be verified by itself."""
    return stream_export(request, wanted)


def stream_export(request: Request, wanted: Wanted) -> Response:
    """Give entries as a file, part by part."""
    parts = service.export(request.app.state.sessions, wanted)
    # What is wrong with the question comes out with the first part, while it can still be answered.
    first = next(parts, b"")
    return StreamingResponse(
        chain([first], parts),
        media_type="application/jsonl",
        headers={"content-disposition": 'attachment; filename="audit.jsonl"'},
    )


@router.get("/v1/audit/verify")
def verify_chain(
    session: SessionDep,
    position: Annotated[
        int | None, Query(ge=0, le=2**63 - 1, description="Of a head that was noted before.")
    ] = None,
    sha256: Annotated[
        str | None, Query(pattern="^[0-9a-f]{64}$", description="Of the same head.")
    ] = None,
) -> AuditVerification:
    """Check the whole chain, and that a head that was noted earlier is still in it."""
    if (position is None) != (sha256 is None):
        raise HalfAHead(param="position" if position is None else "sha256")
    noted = Head(position, sha256) if position is not None and sha256 is not None else None
    return AuditVerification.of(verify(session, noted))


@router.get("/v1/organization/audit_logs")
def list_as_openai(
    session: SessionDep,
    after: After = None,
    before: Annotated[Identifier | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    event_types: Annotated[Words, Query(alias="event_types[]")] = None,
    actor_ids: Annotated[Words, Query(alias="actor_ids[]")] = None,
    project_ids: Annotated[Words, Query(alias="project_ids[]")] = None,
    resource_ids: Annotated[Words, Query(alias="resource_ids[]")] = None,
    gt: Annotated[Seconds, Query(alias="effective_at[gt]")] = None,
    gte: Annotated[Seconds, Query(alias="effective_at[gte]")] = None,
    lt: Annotated[Seconds, Query(alias="effective_at[lt]")] = None,
    lte: Annotated[Seconds, Query(alias="effective_at[lte]")] = None,
) -> OrganizationLogPage:
    """List audit entries in the shape that the stock client's `admin.organization.audit_logs` reads."""
    since = max(
        (bound for bound in (gte, None if gt is None else gt + 1) if bound is not None),
        default=None,
    )
    until = min(
        (bound for bound in (lte, None if lt is None else lt - 1) if bound is not None),
        default=None,
    )
    wanted = Wanted(
        actions=service.own_words(event_types or ()),
        actor_key_ids=actor_ids or (),
        subject_ids=resource_ids or (),
        project_ids=project_ids or (),
        since=since,
        until=until,
    )
    found, has_more = service.list_entries(session, wanted, after=after, before=before, limit=limit)
    shown = service.show_as_openai(session, found)
    return OrganizationLogPage(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=has_more,
    )
