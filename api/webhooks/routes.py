"""/v1/webhook_endpoints and /v1/webhook_event_types: OpenAI's surface, and deliveries beside it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from api.deps import CallerDep, SessionDep, SettingsDep, get_caller
from api.schemas import After, Listing, PageLimit
from api.webhooks import service
from api.webhooks.schemas import (
    CreateEndpoint,
    DeletedEndpoint,
    DeliveryObject,
    EndpointObject,
    EndpointWithSecret,
    EventTypeList,
    RotateSecret,
    TestEndpoint,
    TestResult,
    UpdateEndpoint,
)
from api.webhooks.sender import Sender
from api.webhooks.signing import SecretBox
from models.webhook import WebhookEventType

router = APIRouter(prefix="/v1", tags=["webhooks"])
ENDPOINTS, ENDPOINT = "/webhook_endpoints", "/webhook_endpoints/{endpoint_id}"


def get_box(settings: SettingsDep) -> SecretBox:
    """Give what seals and opens secrets."""
    return SecretBox.of(settings)


def get_owner(caller: CallerDep) -> service.Owner:
    """Give whose endpoints the caller may see."""
    return service.Owner(caller.project.id, is_staff=caller.is_staff)


BoxDep = Annotated[SecretBox, Depends(get_box)]
OwnerDep = Annotated[service.Owner, Depends(get_owner)]


@router.get("/webhook_event_types", dependencies=[Depends(get_caller)])
def list_event_types() -> EventTypeList:
    """List the types of event that an endpoint can ask for."""
    return EventTypeList(data=list(WebhookEventType))


@router.post(ENDPOINTS)
def create(
    body: CreateEndpoint, owner: OwnerDep, session: SessionDep, settings: SettingsDep, box: BoxDep
) -> EndpointWithSecret:
    """Register a receiver. Its signing secret is in this answer and in that of a rotation, nowhere else."""
    endpoint, secret = service.create_endpoint(
        session, box, owner, body, allow_private=settings.webhook_allow_private
    )
    return EndpointWithSecret.made(endpoint, secret)


@router.get(ENDPOINTS)
def list_endpoints(
    owner: OwnerDep, session: SessionDep, after: After = None, limit: PageLimit = 20
) -> Listing[EndpointObject]:
    """List the project's endpoints, newest first."""
    found, has_more = service.list_endpoints(session, owner, after=after, limit=limit)
    return Listing(data=[EndpointObject.of(endpoint) for endpoint in found], has_more=has_more)


@router.get(ENDPOINT)
def retrieve(endpoint_id: str, owner: OwnerDep, session: SessionDep) -> EndpointObject:
    """Show one endpoint."""
    return EndpointObject.of(service.get_endpoint(session, owner, endpoint_id))


@router.post(ENDPOINT)
def update(
    endpoint_id: str,
    body: UpdateEndpoint,
    owner: OwnerDep,
    session: SessionDep,
    settings: SettingsDep,
) -> EndpointObject:
    """Change an endpoint; switch it off, or on again after it was disabled."""
    endpoint = service.update_endpoint(
        session,
        owner,
        endpoint_id,
        body,
        allow_private=settings.webhook_allow_private,
    )
    return EndpointObject.of(endpoint)


@router.delete(ENDPOINT)
def delete(endpoint_id: str, owner: OwnerDep, session: SessionDep) -> DeletedEndpoint:
    """Delete an endpoint and its deliveries."""
    service.delete_endpoint(session, owner, endpoint_id)
    return DeletedEndpoint(id=endpoint_id)


@router.post(ENDPOINT + "/rotate_secret")
def rotate_secret(
    endpoint_id: str,
    owner: OwnerDep,
    session: SessionDep,
    box: BoxDep,
    body: RotateSecret | None = None,
) -> EndpointWithSecret:
    """Replace the signing secret. For 24 hours messages can be signed with the old one as well."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    endpoint, secret = service.rotate_secret(session, box, owner, endpoint_id, keep_old=keep_old)
    return EndpointWithSecret.made(endpoint, secret)


def prepared(
    endpoint_id: str, body: TestEndpoint, owner: OwnerDep, session: SessionDep, box: BoxDep
) -> service.Sample:
    """Make the sample in a thread, with a connection that is given back before it is sent."""
    return service.prepare_test(session, box, owner, endpoint_id, body.event_type)


def get_sender(settings: SettingsDep) -> Sender:
    """Give a sender; reading the certificates that it trusts is a thread's work too."""
    return Sender(allow_private=settings.webhook_allow_private)


@router.post(ENDPOINT + "/test")
async def test(
    sample: Annotated[service.Sample, Depends(prepared, scope="function")],
    sender: Annotated[Sender, Depends(get_sender)],
) -> TestResult:
    """Send a sample of an event now, and say what was answered."""
    async with sender:
        status = await service.send_test(sender, sample)
    return TestResult(
        webhook_endpoint_id=sample.endpoint_id, event_type=sample.message.type, status_code=status
    )


@router.get(ENDPOINT + "/deliveries")
def list_deliveries(
    endpoint_id: str,
    owner: OwnerDep,
    session: SessionDep,
    after: After = None,
    limit: PageLimit = 20,
) -> Listing[DeliveryObject]:
    """List what was delivered and is to be, newest first. Kept for 30 days."""
    found, has_more = service.list_deliveries(session, owner, endpoint_id, after=after, limit=limit)
    return Listing(data=[DeliveryObject.of(delivery) for delivery in found], has_more=has_more)


@router.post(ENDPOINT + "/deliveries/{delivery_id}/redeliver")
def redeliver(
    endpoint_id: str, delivery_id: str, owner: OwnerDep, session: SessionDep
) -> DeliveryObject:
    """Deliver an event again, or at once, under the same id."""
    return DeliveryObject.of(service.redeliver(session, owner, endpoint_id, delivery_id))
