"""The tree of errors that a caller may see, and nothing else.

    DomainError (400)
    ├── NotFound (404)          an object that is absent, or belongs to another project
    ├── Conflict (409)          the object is in the wrong state for this
    ├── Unauthorized (401)      no key, or an unknown one
    ├── Forbidden (403)         the key lacks the scope
    ├── TooManyRequests (429)   a rate limit or a quota is used up
    └── Unavailable (503)       a part that the request needs is down

Each error is defined where it is raised, as a subclass of one of these. A message is a sentence for a
person. It never carries row text, prompts, completions or keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class DomainError(Exception):
    """The request cannot be carried out."""

    status_code: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"
    code: ClassVar[str] = "invalid_request"

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        """Keep the sentence (the class docstring when none is given) and the field it is about."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.param = param
        super().__init__(self.message)

    def extra(self) -> dict[str, object]:
        """Facts to show beside the message in the error body, such as the faults of each row."""
        return {}

    def headers(self) -> Mapping[str, str]:
        """Headers to send beside the body."""
        return {}


class NotFound(DomainError):
    """No such object."""

    status_code = 404
    code = "not_found"


class Conflict(DomainError):
    """The object is not in a state that allows this."""

    status_code = 409
    code = "conflict"


class Unauthorized(DomainError):
    """No valid API key was sent. Send `Authorization: Bearer <key>`."""

    status_code = 401
    code = "invalid_api_key"


class Forbidden(DomainError):
    """This API key does not have the scope that the request needs."""

    status_code = 403
    type = "permission_error"
    code = "insufficient_scope"


class TooManyRequests(DomainError):
    """More was asked for than this key or project may have."""

    status_code = 429
    type = "rate_limit_exceeded"
    code = "rate_limit_exceeded"


class Unavailable(DomainError):
    """A part of the service is not reachable at the moment. Try again."""

    status_code = 503
    type = "server_error"
    code = "unavailable"
