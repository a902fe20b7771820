"""Asking a judge that lives behind an OpenAI-compatible HTTP endpoint: keys, patience, bounds.

The texts leave the service, and the model behind the endpoint may change under its name. The key is read
from an environment variable; neither it nor any text stands in an error.
"""

from __future__ import annotations

import os
import time
from typing import Self

import httpx

from models.endpoint import EndpointSpec
from worker.judgement import JudgeError

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
TOO_MANY_REQUESTS, SERVER_ERRORS = 429, 500


class _TryAgain(Exception):
    """The request may succeed later."""

    def __init__(self, wait_seconds: float = 0.0) -> None:
        self.wait_seconds = wait_seconds
        super().__init__()


def authorization(spec: EndpointSpec) -> dict[str, str]:
    """Give the headers that carry the key, if the endpoint wants one.

    Raises:
        JudgeError: the environment variable is not set.
    """
    if spec.key_variable is None:
        return {}
    key = os.environ.get(spec.key_variable)
    if not key:
        raise JudgeError(f"The environment variable {spec.key_variable} is not set.")
    return {"Authorization": f"Bearer {key}"}


class Endpoint:
    """One endpoint, asked from any number of threads; use as a context manager."""

    def __init__(self, spec: EndpointSpec) -> None:
        """Look for the key.

        Raises:
            JudgeError: the environment variable is not set.
        """
        self._spec = spec
        self._client = httpx.Client(headers=authorization(spec), timeout=spec.timeout_seconds)

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
            try:
                return self._try(path, body)
            except _TryAgain as again:
                if attempt < self._spec.tries:
                    time.sleep(min(max(pause, again.wait_seconds), LONGEST_PAUSE_SECONDS))
                    pause *= 2
        raise JudgeError(f"The endpoint was down or busy at each of {self._spec.tries} tries.")

    def _try(self, path: str, body: dict[str, object]) -> bytes:
        deadline = time.monotonic() + self._spec.timeout_seconds
        content = bytearray()
        try:
            with self._client.stream("POST", f"{self._spec.base_url}/{path}", json=body) as answer:
                if answer.status_code == TOO_MANY_REQUESTS or answer.status_code >= SERVER_ERRORS:
                    raise _TryAgain(_seconds(answer.headers.get("retry-after", "")))
                if not answer.is_success:
                    raise JudgeError(f"The endpoint answered {answer.status_code}.")
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > MAX_RESPONSE_BYTES:
                        raise JudgeError("The endpoint's answer is too large.")
                    if time.monotonic() > deadline:
                        raise _TryAgain
        except httpx.RequestError:
            # Not as a cause: a complaint about a header would quote the key.
            raise _TryAgain from None
        return bytes(content)


def _seconds(header: str) -> float:
    """Read `Retry-After` in seconds; its other form, a date, counts as none."""
    return float(header) if header.isdecimal() else 0.0
