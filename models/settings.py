"""Every setting of every process, in one class, read from the environment.

The three addresses keep the names that operators expect (`DATABASE_URL`, `REDIS_URL`, `STORAGE_URL`);
all others start with `TITER_`, and one that is misspelt is refused. Values are read where a process starts and passed down as arguments:
trainers and the policy never see this module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "TITER_"
# Read by the command line alone: where the service is, and who is asking.
CLIENT_VARIABLES = frozenset({"TITER_URL", "TITER_API_KEY", "TITER_STATE"})


def _named(name: str) -> AliasChoices:
    return AliasChoices(name.upper(), name)


class Settings(BaseSettings):
    """Where the parts are, and the service's limits. Units stand in the names."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    # Both addresses may hold a password, so they stay out of the representation.
    database_url: str = Field(
        "postgresql+psycopg://titer@127.0.0.1:5432/titer",
        validation_alias=_named("database_url"),
        repr=False,
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", validation_alias=_named("redis_url"), repr=False
    )
    # A folder (file:///srv/titer) or a bucket (s3://bucket/prefix; credentials as AWS_* variables).
    storage_url: str = Field(
        "file:///var/lib/titer/storage", validation_alias=_named("storage_url")
    )
    # Where a worker keeps copies of models and unfinished checkpoints; may be wiped at any time.
    cache_dir: Path = Path("/var/lib/titer/cache")

    # The inference server that /v1/chat/completions is passed on to, and the secret both sides know.
    serving_url: str = "http://127.0.0.1:8001"
    # Where the inference server listens; empty: the host of its address (set 0.0.0.0 in a container).
    serving_host: str = ""
    serving_token: SecretStr = SecretStr("")
    # Signs the dashboard's session cookies; empty: made anew at every start, so sign-ins end with it.
    session_secret: SecretStr = SecretStr("")
    # Set it where the service is reached over HTTPS, so that cookies never travel in the clear.
    https_only: bool = False

    max_file_bytes: int = Field(512 * 1024 * 1024, ge=1)
    max_request_bytes: int = Field(2 * 1024 * 1024, ge=1)

    # A worker that says nothing for this long has lost its job; it speaks four times as often.
    lease_seconds: int = Field(60, ge=4)
    max_attempts: int = Field(3, ge=1)
    sweep_seconds: float = Field(5.0, gt=0)
    # Longer than the longest job: Celery's redelivery is only a second doorbell.
    visibility_timeout_seconds: int = Field(7 * 24 * 3600, ge=60)

    # Trackers that customers may have their curves sent to; empty: that one is not configured.
    wandb_api_key: SecretStr = SecretStr("")
    wandb_base_url: str = "https://api.wandb.ai"
    # The team or user whose projects are written; empty: the key's own.
    wandb_entity: str = ""
    # The tracking server's address (https://mlflow.example.com), and a bearer token if it wants one.
    mlflow_tracking_uri: str = Field("", repr=False)
    mlflow_token: SecretStr = SecretStr("")

    log_json: bool = False
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="before")
    @classmethod
    def _know_every_name(cls, values: object) -> object:
        # A limit that is misspelt, and so silently not set, is found out when it is needed.
        unknown = sorted(
            name
            for name in os.environ
            if name.startswith(PREFIX) and name not in {*environment_names(), *CLIENT_VARIABLES}
        )
        if unknown:
            raise ValueError(f"no setting is called {', '.join(unknown)}")
        return values


def environment_names() -> dict[str, str]:
    """Give each environment variable that is read, with its setting's name."""
    return {
        (name if field.validation_alias else PREFIX + name).upper(): name
        for name, field in Settings.model_fields.items()
    }
