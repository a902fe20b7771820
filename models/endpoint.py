"""An HTTP endpoint that speaks OpenAI's API and judges for us: its address, its key's name, our patience.

The texts leave the service, and the model behind the endpoint may change under its name. Only the name of the
environment variable with the key is ever stored. `worker.endpoint` asks.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from models.frozen import Frozen


class EndpointSpec(Frozen):
    """Where a model answers, and how patiently it is asked."""

    base_url: str = Field(max_length=1000, description="For example https://api.openai.com/v1.")
    model: str = Field(min_length=1, max_length=200)
    # Of this form alone: a name that could be any variable's could send any secret away.
    key_variable: str | None = Field(
        None,
        pattern=r"^JUDGE_([A-Z0-9]{1,40}_){0,4}KEY$",
        description="The worker's environment variable with the key; the key itself is not stored.",
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


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
