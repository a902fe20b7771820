"""The settings as people may see them: by group, each with its value or default, and no secret among them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from models.settings import Settings, environment_names

#: By what the names begin with, the first that fits.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Addresses": (
        *("database_url", "listen_url", "redis_url", "storage_url", "public_url"),
        "cache_dir",
    ),
    "Inference": ("serving_", "moderation_"),
    "Signatures and sessions": ("session_", "signing_", "https_only", "adapter_export"),
    "Signing in elsewhere": ("oidc_",),
    "Webhooks and streams": ("webhook_", "max_event_streams"),
    "Request limits": ("max_file", "max_upload", "max_request", "key_requests", "project_requests"),
    "Jobs and workers": ("lease_", "max_attempts", "sweep_", "visibility_"),
    "Quotas": ("quota_",),
    "Trackers": ("wandb_", "mlflow_"),
    "Logs": ("log_",),
}
OTHERS = "Others"
#: User, password and query of an address: each may be a secret.
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@|(?<=\S)\?\S*")
MASK = "•••"


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """One setting. `value` of a secret says only whether it is set."""

    group: str
    variable: str
    value: str
    is_default: bool
    is_secret: bool


def show_settings(settings: Settings) -> list[ShownSetting]:
    """Give every setting, group by group, in the order in which the class has them."""
    shown = [
        ShownSetting(
            group=group_of(name),
            variable=variable,
            value=_shown(getattr(settings, name)),
            is_default=getattr(settings, name) == Settings.model_fields[name].default,
            is_secret=isinstance(getattr(settings, name), SecretStr),
        )
        for variable, name in environment_names().items()
    ]
    order = [*GROUPS, OTHERS]
    return sorted(shown, key=lambda setting: order.index(setting.group))


def group_of(name: str) -> str:
    """Give the group of a setting; one that was added since is among the others."""
    return next(
        (group for group, starts in GROUPS.items() if name.startswith(starts)),
        OTHERS,
    )


def without_credentials(address: str) -> str:
    """Give an address without what might be secret in it."""
    return _CREDENTIALS.sub(
        lambda found: f"?{MASK}" if found[0].startswith("?") else f"{MASK}@", address
    )


def _shown(value: object) -> str:
    match value:
        case SecretStr():
            return "set" if value else "not set"
        case bool():
            return "true" if value else "false"
        case str():
            return without_credentials(value)
        case _:
            return str(value)
