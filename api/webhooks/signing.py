"""Signing secrets: made, sealed for the database, and used as the Standard Webhooks specification says.

A secret must stay readable, since every delivery is signed with it. So it is encrypted (Fernet: AES-CBC with
HMAC) under a key that stands in the settings and never in the database.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Self

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from models.errors import Unavailable
from models.settings import Settings

PREFIX = "whsec_"
SECRET_BYTES = 32
HINT_CHARACTERS = 4


class WebhooksNotConfigured(Unavailable):
    """This service has no webhooks: its operator has not set TITER_WEBHOOK_KEY."""

    code = "webhooks_not_configured"


class SecretUnreadable(Exception):
    """The secret was sealed under another key: the endpoint's secret must be rotated."""


class SecretBox:
    """Seals and opens signing secrets."""

    def __init__(self, key: str) -> None:
        """Derive the encryption key from a long random string."""
        derived = HKDF(SHA256(), length=32, salt=None, info=b"titer webhook secrets")
        self._fernet = Fernet(base64.urlsafe_b64encode(derived.derive(key.encode())))

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Make the box that the settings describe.

        Raises:
            WebhooksNotConfigured: they have no key.
        """
        if not settings.webhook_key:
            raise WebhooksNotConfigured
        return cls(settings.webhook_key.get_secret_value())

    def seal(self, secret: str) -> str:
        """Encrypt a secret."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """Decrypt a secret.

        Raises:
            SecretUnreadable: it was sealed under another key.
        """
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SecretUnreadable from None


def new_secret() -> str:
    """Make a signing secret of 256 random bits, in the form that receivers' libraries expect."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def hint(secret: str) -> str:
    """Give what may be shown of a secret afterwards."""
    return f"{PREFIX}...{secret[-HINT_CHARACTERS:]}"


def sign(secrets: Sequence[str], *, id: str, timestamp: int, body: bytes) -> str:
    """Give the `webhook-signature` header: one signature per secret, so that either is enough.

    Args:
        secrets: with their prefix; the newest first.
        id: the event's id.
        timestamp: of this attempt, in Unix seconds.
        body: exactly as it is sent.
    """
    content = b"%s.%d.%s" % (id.encode(), timestamp, body)
    return " ".join("v1," + _signature(secret, content) for secret in secrets)


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
