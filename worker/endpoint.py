"""Asking a judge that lives behind an OpenAI-compatible HTTP endpoint: keys, patience, bounds.

The texts leave the service, and the model behind the endpoint may change under its name. The key is read
from an environment variable; neither it nor any text stands in an error.
"""

from __future__ import annotations

import os
import time
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

import httpx
from pydantic import Field, field_validator, model_validator

from models.frozen import Frozen
from worker.judgement import JudgeError

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
TOO_MANY_REQUESTS, SERVER_ERRORS = 429, 500


class EndpointSpec(Frozen):
    """Where a model answers, and how patiently it is asked."""

    base_url: str = Field(max_length=1000, description="For example https://api.openai.com/v1.")
    model: str = Field(min_length=1, max_length=200)
    # Of this form alone: a name that could be any variable's could send any secret away.
    key_variable: str | None = Field(
        None,
        pattern=r"^JUDGE_([A-Z0-9]{1,40}_){0,4}KEY$",
        description="The environment variable with the key.",
    )
    timeout_seconds: float = Field(60.0, gt=0, le=600, description="For one request.")
    tries: int = Field(4, ge=1, le=10, description="For one request, with pauses that double.")

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must have no user, password, query or fragment")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _keeps_the_key_secret(self) -> Self:
        parts = urlsplit(self.base_url)
        if self.key_variable and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            raise ValueError("a key travels over https only")
        return self


class Endpoint:
    """One endpoint, asked from any number of threads; use as a context manager."""

    def __init__(self, spec: EndpointSpec) -> None:
        """Look for the key.

        Raises:
            JudgeError: the environment variable is not set.
        """
        headers = {}
        if spec.key_variable is not None:
            key = os.environ.get(spec.key_variable)
            if not key:
                raise JudgeError(f"The environment variable {spec.key_variable} is not set.")
            headers["Authorization"] = f"Bearer {key}"
        self._spec = spec
        self._client = httpx.Client(headers=headers, timeout=spec.timeout_seconds)

    def __enter__(self) -> Self:
        """Keep connections open for the length of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self._client.close()

    def post(self, path: str, body: dict[str, object]) -> bytes:
        """Send a request, again and again with longer pauses while the endpoint is down or busy.

        Raises:
            JudgeError: it refused, stayed silent, or said too much.
        """
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, self._spec.tries + 1):
            if attempt > 1:
                time.sleep(min(pause, LONGEST_PAUSE_SECONDS))
                pause *= 2
            content = self._try(path, body)
            if content is not None:
                return content
        raise JudgeError(f"The endpoint was down or busy at each of {self._spec.tries} tries.")

    def _try(self, path: str, body: dict[str, object]) -> bytes | None:
        """Give the answer, or none when another try may bring one."""
        deadline = time.monotonic() + self._spec.timeout_seconds
        content = bytearray()
        try:
            with self._client.stream("POST", f"{self._spec.base_url}/{path}", json=body) as answer:
                if answer.status_code == TOO_MANY_REQUESTS or answer.status_code >= SERVER_ERRORS:
                    return None
                if not answer.is_success:
                    raise JudgeError(f"The endpoint answered {answer.status_code}.")
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > MAX_RESPONSE_BYTES:
                        raise JudgeError("The endpoint's answer is too large.")
                    if time.monotonic() > deadline:
                        return None
        except httpx.RequestError:
            # The error's text is not kept: a complaint about a header would quote the key.
            return None
        return bytes(content)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
