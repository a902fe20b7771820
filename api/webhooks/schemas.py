"""Webhook endpoints and deliveries as clients see them: OpenAI's fields first, then ours."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, field_validator

from api.schemas import Schema
from api.webhooks.target import MAX_URL_CHARACTERS
from models.base import unix
from models.webhook import WebhookDelivery, WebhookEndpoint, WebhookEventType

Name = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL_CHARACTERS)]
EventTypes = Annotated[
    list[WebhookEventType], Field(min_length=1, max_length=2 * len(WebhookEventType))
]


class CreateEndpoint(Schema):
    """A new endpoint."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "ours",
                    "url": "https://example.com/hook",
                    "event_types": [
                        "fine_tuning.job.succeeded",
                        "fine_tuning.job.failed",
                        "titer.model.held",
                    ],
                },
            ]
        }
    )

    name: Name
    url: Url
    event_types: EventTypes
    all_projects: bool = Field(
        False, description="Whether it is told of every project's events; for staff."
    )


class UpdateEndpoint(Schema):
    """What is to be changed; what is left out stays."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    enabled: bool | None = Field(
        None, description="False stops deliveries; true starts them again, with what is still due."
    )

    @field_validator("name", "url", "event_types", "enabled")
    @classmethod
    def _is_no_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("cannot be null; leave it out to keep it")
        return value


class RotateSecret(Schema):
    """How the old secret ends."""

    keep_old_secret_active_for_24_hours: bool = False


class TestEndpoint(Schema):
    """Which event to send as a sample."""

    __test__ = False

    event_type: WebhookEventType


class EndpointObject(Schema):
    """An endpoint, without its secret."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    all_projects: bool
    enabled: bool
    disabled_reason: str | None = Field(description="Why nothing is sent any more.")

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        """Show a stored endpoint."""
        return cls(
            id=endpoint.id,
            created_at=unix(endpoint.created_at),
            updated_at=unix(endpoint.updated_at),
            name=endpoint.name,
            url=endpoint.url,
            event_types=endpoint.event_types,
            signing_secret_hint=endpoint.secret_hint,
            all_projects=endpoint.all_projects,
            enabled=endpoint.is_enabled,
            disabled_reason=endpoint.disabled_reason,
        )


class EndpointWithSecret(EndpointObject):
    """An endpoint on the two occasions when its secret is shown: made, and rotated."""

    signing_secret: str

    @classmethod
    def made(cls, endpoint: WebhookEndpoint, secret: str) -> Self:
        """Show a stored endpoint with its secret."""
        return cls(**EndpointObject.of(endpoint).model_dump(), signing_secret=secret)


class DeletedEndpoint(Schema):
    """The answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class TestResult(Schema):
    """What a receiver answered to a sample."""

    __test__ = False

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeList(Schema):
    """Every type that an endpoint can ask for."""

    object: Literal["list"] = "list"
    data: list[str]


class DeliveryObject(Schema):
    """One event for one endpoint, over all its attempts."""

    id: str
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    created_at: int
    event_id: str = Field(description="The `webhook-id` header of every attempt.")
    event_type: str
    status: str = Field(description="`pending`, `delivered` or `failed`.")
    attempts: int
    last_attempt_at: int | None
    next_attempt_at: int | None
    response_status: int | None
    error: str | None = Field(description="Why there was no answer.")

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> Self:
        """Show a stored delivery."""
        last, following = delivery.last_attempt_at, delivery.next_attempt_at
        return cls(
            id=delivery.id,
            created_at=unix(delivery.created_at),
            event_id=delivery.event_id,
            event_type=delivery.event.type,
            status=delivery.status,
            attempts=delivery.attempts,
            last_attempt_at=unix(last) if last else None,
            next_attempt_at=unix(following) if following else None,
            response_status=delivery.response_status,
            error=delivery.error,
        )
