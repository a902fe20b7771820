"""Sends one signed message once. Knows neither the database nor when to try again.

Nothing of an answer but its status is read: a receiver that never ends its answer, or sends it drop by drop,
costs no more than the time limit.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import httpx

from api.webhooks.signing import sign
from api.webhooks.target import InvalidWebhookUrl, NameUnknown, TargetRefused, resolve
from models.base import unix

TIMEOUT_SECONDS = 15.0
TIMEOUTS = httpx.Timeout(TIMEOUT_SECONDS, connect=5.0)
USER_AGENT = f"Titer-Webhooks/{version('titer')}"


class NotDelivered(Exception):
    """There was no answer. `reason` is a word for programs, the message a sentence for people."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Message:
    """An event as its receivers see it."""

    id: str
    type: str
    created_at: datetime
    data: Mapping[str, Any]

    @property
    def body(self) -> bytes:
        """The JSON that is sent, in the shape of OpenAI's events."""
        event = {
            "id": self.id,
            "object": "event",
            "created_at": unix(self.created_at),
            "type": self.type,
            "data": dict(self.data),
        }
        return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


class Sender:
    """An HTTP client that follows nothing, remembers nothing and trusts no proxy. An async context manager."""

    def __init__(self, *, allow_private: bool) -> None:
        """Prepare to send; nothing is connected yet."""
        self._allow_private = allow_private
        # A bare transport: a client would keep one receiver's cookies for the next one at its address.
        self._transport = httpx.AsyncHTTPTransport(
            verify=ssl.create_default_context(),
            trust_env=False,
            # Connections are kept by address, and names of different owners share addresses.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def __aenter__(self) -> Self:
        """Keep it open for the length of the block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self._transport.aclose()

    async def send(self, url: str, message: Message, secrets: Sequence[str]) -> int:
        """Send a message, signed as of now; give the status that was answered.

        Raises:
            NotDelivered: no answer came.
        """
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._send(url, message, secrets)
        except (TimeoutError, httpx.TimeoutException):
            raise NotDelivered(
                "timeout", f"There was no answer within {TIMEOUT_SECONDS:.0f} seconds."
            ) from None
        except NameUnknown:
            raise NotDelivered("name_unknown", "The host's name cannot be resolved.") from None
        except (TargetRefused, InvalidWebhookUrl):
            raise NotDelivered(
                "address_refused", "The URL leads to an address that webhooks are not sent to."
            ) from None
        except httpx.ConnectError as error:
            raise _not_connected(error) from None
        except (httpx.HTTPError, httpx.InvalidURL):
            raise NotDelivered("connection_broken", "The connection broke.") from None

    async def _send(self, url: str, message: Message, secrets: Sequence[str]) -> int:
        target = await resolve(url, allow_private=self._allow_private)
        body, timestamp = message.body, int(time.time())
        request = httpx.Request(
            "POST",
            target.url,
            content=body,
            headers={
                "host": target.host_header,
                "content-type": "application/json",
                "user-agent": USER_AGENT,
                "webhook-id": message.id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign(secrets, id=message.id, timestamp=timestamp, body=body),
            },
            # The certificate is checked for the name, though the address is what is connected to.
            extensions={"sni_hostname": target.host, "timeout": TIMEOUTS.as_dict()},
        )
        response = await self._transport.handle_async_request(request)
        await response.aclose()
        return response.status_code


def _not_connected(error: httpx.ConnectError) -> NotDelivered:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return NotDelivered("tls_failed", "The TLS handshake failed: check the certificate.")
        cause = cause.__cause__ or cause.__context__
    return NotDelivered("connection_failed", "Nothing accepted the connection.")
