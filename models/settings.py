"""Every setting of every process, in one class, read from the environment.

The addresses keep the names that operators expect (`DATABASE_URL`, `REDIS_URL`, `STORAGE_URL`, and
OpenTelemetry's own); all others start with `TITER_`, and one that is misspelt is refused. Values are read where a process starts and passed down as arguments:
trainers and the policy never see this module.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.project import Quotas

PREFIX = "TITER_"
# Read by the command line alone: where the service is, and who is asking.
CLIENT_VARIABLES = frozenset({"TITER_URL", "TITER_API_KEY", "TITER_STATE"})
MIN_KEY_CHARACTERS = 32


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
    # Another way to the same database, for listening: needed where database_url leads to a pooler in transaction
    # mode. Empty: the same.
    listen_url: str = Field("", repr=False)
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
    # The model whose safety set's judge answers /v1/moderations; empty: the only base that there is.
    moderation_model: str = Field("", max_length=256)
    # Where the judges run, if not at the inference server: a built-in one beside vLLM, which has none.
    moderation_url: str = Field("", max_length=1000, pattern=r"^(https?://.+)?$")
    # Signs the dashboard's session cookies; empty: made anew at every start, so sign-ins end with it.
    session_secret: SecretStr = SecretStr("")
    # Signs safety reports (Ed25519): 64 hex digits, as `openssl rand -hex 32` makes them; empty: no reports.
    signing_key: SecretStr = SecretStr("")
    # Whether customers may download adapters of released models: of no base, of those whose safety set says so, or
    # of all.
    adapter_export: Literal["never", "per-base", "always"] = "per-base"
    # Where browsers reach the service, without a path (https://titer.example.com); sign-in elsewhere needs it.
    public_url: str = Field("", max_length=500, pattern=r"^(https?://[^/\s]+/?)?$")
    # An OpenID provider at which staff sign in to the dashboard (docs/deploy.md); empty: with API keys alone.
    oidc_issuer: str = Field("", max_length=500, pattern=r"^(https?://\S+)?$")
    oidc_client_id: str = Field("", max_length=500)
    oidc_client_secret: SecretStr = SecretStr("")
    # What the provider is called on the sign-in page.
    oidc_name: str = Field("single sign-on", min_length=1, max_length=60)
    oidc_scope: str = "openid email profile"
    # The claim whose values are roles, and which role each is: {"titer-ops": "operator"}.
    oidc_roles_claim: str = Field("groups", min_length=1)
    oidc_roles: dict[str, Literal["viewer", "reviewer", "provider", "operator"]] = Field({})
    # Domains of verified mail addresses that are let in, separated by commas; empty: all that have a role.
    oidc_domains: str = ""
    # The project, by name or id, whose keys such people have.
    oidc_project: str = Field("default", min_length=1, max_length=100)
    # After so long they sign in again.
    oidc_session_seconds: int = Field(8 * 3600, ge=60, le=12 * 3600)
    # Set it where the service is reached over HTTPS, so that cookies never travel in the clear.
    https_only: bool = False

    # Seals the secrets that webhooks are signed with; empty: there are no webhooks. Changed: every endpoint's
    # secret must be rotated.
    webhook_key: SecretStr = SecretStr("")
    # Lets webhooks go over plain HTTP and to private addresses. For development alone.
    webhook_allow_private: bool = False
    # Streams of job events, and live pages of the dashboard, that one api process keeps open at once.
    max_event_streams: int = Field(200, ge=1, le=10_000)

    max_file_bytes: int = Field(512 * 1024 * 1024, ge=1)
    # A file that comes in parts. A worker reads a whole data set into memory.
    max_upload_bytes: int = Field(2 * 1024 * 1024 * 1024, ge=1)
    max_request_bytes: int = Field(2 * 1024 * 1024, ge=1)

    # A worker that says nothing for this long has lost its job; it speaks four times as often.
    lease_seconds: int = Field(60, ge=4)
    max_attempts: int = Field(3, ge=1)
    sweep_seconds: float = Field(5.0, gt=0)
    # How long the epochs' weights of a job that failed or was cancelled are kept; 0: for ever.
    checkpoint_days: float = Field(30.0, ge=0, le=36_500)
    # Longer than the longest job: Celery's redelivery is only a second doorbell.
    visibility_timeout_seconds: int = Field(7 * 24 * 3600, ge=60)

    # What a project may use that has no limit of its own; 0 is no limit. (`models.project.Quotas`)
    quota_jobs_running: int = Field(0, ge=0)
    quota_jobs_queued: int = Field(1_000, ge=0)
    quota_bytes_stored: int = Field(0, ge=0)
    quota_training_tokens_month: int = Field(0, ge=0)
    quota_gpu_seconds_month: int = Field(0, ge=0)
    # Requests a minute, of one key and of all keys of a project; 0 is no limit.
    key_requests_per_minute: int = Field(1_200, ge=0, le=1_000_000)
    project_requests_per_minute: int = Field(6_000, ge=0, le=1_000_000)
    # Tokens of chat and completions a minute, of prompts and answers together; 0 is no limit.
    key_tokens_per_minute: int = Field(0, ge=0, le=1_000_000_000)
    project_tokens_per_minute: int = Field(0, ge=0, le=1_000_000_000)
    # Trackers that customers may have their curves sent to; empty: that one is not configured.
    wandb_api_key: SecretStr = SecretStr("")
    wandb_base_url: str = "https://api.wandb.ai"
    # The team or user whose projects are written; empty: the key's own.
    wandb_entity: str = ""
    # The tracking server's address (https://mlflow.example.com), and a bearer token if it wants one.
    mlflow_tracking_uri: str = Field("", repr=False)
    mlflow_token: SecretStr = SecretStr("")

    # What whoever reads the metrics must send as a bearer token; empty: no process has any to read.
    metrics_token: SecretStr = SecretStr("")
    # Where a worker's metrics are read; 0: nowhere. The api has its own at /metrics.
    metrics_port: int = Field(0, ge=0, le=65_535)
    metrics_host: str = "127.0.0.1"
    # The OTLP collector that traces are sent to over HTTP; empty: nothing is traced. The library reads further
    # OTEL_* variables by itself.
    otel_exporter_otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        validation_alias=_named("otel_exporter_otlp_endpoint"),
        repr=False,
    )

    log_json: bool = False
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def quotas(self) -> Quotas:
        """The limits of a project that has none of its own."""
        return Quotas(
            jobs_running=self.quota_jobs_running,
            jobs_queued=self.quota_jobs_queued,
            bytes_stored=self.quota_bytes_stored,
            training_tokens_month=self.quota_training_tokens_month,
            gpu_seconds_month=self.quota_gpu_seconds_month,
        )

    @property
    def allowed_domains(self) -> frozenset[str]:
        """The mail domains whose people may sign in; empty: every one."""
        words = (word.strip().casefold() for word in self.oidc_domains.split(","))
        return frozenset(word for word in words if word)

    @model_validator(mode="after")
    def _can_sign_in(self) -> Self:
        if not self.oidc_issuer:
            return self
        needed = {
            "TITER_PUBLIC_URL": self.public_url,
            "TITER_OIDC_CLIENT_ID": self.oidc_client_id,
            "TITER_OIDC_ROLES": self.oidc_roles,
        }
        if missing := [name for name, value in needed.items() if not value]:
            raise ValueError(f"TITER_OIDC_ISSUER needs {', '.join(missing)} as well")
        host = urlsplit(self.oidc_issuer).hostname
        if not self.oidc_issuer.startswith("https://") and host not in ("127.0.0.1", "localhost"):
            raise ValueError("TITER_OIDC_ISSUER must begin with https://")
        return self

    @field_validator("webhook_key", "metrics_token")
    @classmethod
    def _is_long_enough(cls, value: SecretStr) -> SecretStr:
        if value and len(value.get_secret_value()) < MIN_KEY_CHARACTERS:
            raise ValueError(f"must have at least {MIN_KEY_CHARACTERS} characters")
        return value

    @field_validator("signing_key")
    @classmethod
    def _is_a_seed(cls, key: SecretStr) -> SecretStr:
        if not re.fullmatch(r"([0-9a-f]{64})?", key.get_secret_value()):
            raise ValueError("must be 64 hex digits in lower case, or empty")
        return key

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
